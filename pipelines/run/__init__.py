"""A run's folder: its journal, its files, and the words they use."""
