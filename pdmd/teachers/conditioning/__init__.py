"""Conditioning: prompts, images and stored embeddings."""
