"""Modules copied into exports: they import diffusers and nothing of this library."""

__all__: list[str] = []
