"""Packaged teachers: small networks that ship, their weights and their pretraining."""
