"""Prompt embeddings on any file system: made once, then read without the text encoder.

A store is a folder of safetensors shards with an index (:mod:`.index`), read through a local
memory-mapped copy (:mod:`.cache`).
"""

from pdmd.teachers.conditioning.embeddings.embedding import embed
from pdmd.teachers.conditioning.embeddings.stored import StoredEmbeddings

__all__ = ["StoredEmbeddings", "embed"]
