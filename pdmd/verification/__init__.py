"""Verification: folders compared with the digests that were written with them."""
