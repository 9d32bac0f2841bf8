"""Checkpoints: saving and resuming, on any file system."""
