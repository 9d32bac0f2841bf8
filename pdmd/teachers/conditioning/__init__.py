"""Conditioning: prompts, first images and stored embeddings."""
