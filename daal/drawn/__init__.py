"""Drawn pedestrians: two small re-ID domains, made from a seed."""
