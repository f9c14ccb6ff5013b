"""Who shows how a run goes: the terminal, gauges, trackers."""
