"""The images of a run: read, kept, streamed to the workers."""
