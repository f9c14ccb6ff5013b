"""A run as one HTML page that needs nothing else: `pipelines.report.page` makes it."""
