"""Packaged teachers: small networks, their weights and their pretraining."""
