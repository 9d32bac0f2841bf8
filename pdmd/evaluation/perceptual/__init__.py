"""Perceptual comparison: features of pretrained networks, measured on decoded samples."""
