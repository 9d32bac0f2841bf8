"""Tiny pipelines: the classes of released models with small random networks, to walk a recipe."""
