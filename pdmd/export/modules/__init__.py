"""Modules that exports ship: they import diffusers and nothing of this library."""

__all__: list[str] = []
