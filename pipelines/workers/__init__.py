"""The Ray session, what a run takes of its cluster, and the group of workers."""
