"""Families: the pipelines of diffusers as teachers, one a file."""
