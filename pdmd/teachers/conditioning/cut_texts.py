"""Cut texts: the prompts that are longer than a text encoder takes.

A pipeline cuts the tokens of such a text, mostly in silence, and a training then learns another
prompt than its file has. Tokenizers tell what they cut; where a pipeline has several, a text is
cut if none of them keeps its end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

__all__ = ["noting_cut_texts", "note_cut_texts"]

_NOTED: ContextVar[list[str] | None] = ContextVar("_NOTED", default=None)


@contextmanager
def noting_cut_texts(encoder: Any, texts: Sequence[str]) -> Iterator[list[str]]:
    """Collects the texts that are cut while a block encodes them.

    Args:
        encoder: A pipeline of diffusers, or an object that has one as ``pipeline``; of others,
            and of tokenizers that are not of Rust, nothing is known.
        texts: The texts, in the order in which they are encoded.

    Yields:
        A list, which has the texts once the block ends.
    """
    found: list[str] = []
    own = getattr(encoder, "pipeline", encoder)
    flags = [_observed(tokenizer) for tokenizer in _tokenizers(own)]
    noted = _NOTED.set(found)
    try:
        yield found
    finally:
        _NOTED.reset(noted)
        for tokenizer in _tokenizers(own):
            tokenizer.__class__ = type(tokenizer).__mro__[1]
    kept = [_by_text(cut, len(texts)) for cut in flags if cut]
    if kept:
        ends = zip(*kept, strict=True)
        found += [text for text, cut in zip(texts, ends, strict=True) if all(cut)]


def note_cut_texts(texts: Sequence[str]) -> None:
    """Notes texts that a family cuts after its tokenizer, as a block collects them."""
    noted = _NOTED.get()
    if noted is not None:
        noted.extend(texts)


def _tokenizers(pipeline: Any) -> list[Any]:
    parts = getattr(pipeline, "__dict__", {}).items()
    found = [part for name, part in parts if name.startswith("tokenizer")]
    found = [getattr(part, "tokenizer", part) for part in found]  # of a processor
    return [part for part in found if getattr(part, "is_fast", False)]


def _observed(tokenizer: Any) -> list[bool]:
    """Lets a tokenizer note whether it cuts, text by text, until its class is restored."""
    flags: list[bool] = []
    own = type(tokenizer)

    class Observed(own):  # type: ignore[misc, valid-type]
        def __call__(self, *args: Any, **options: Any) -> Any:
            tokens = super().__call__(*args, **options)
            if options.get("truncation"):
                flags.extend(bool(e.overflowing) for e in getattr(tokens, "encodings", None) or ())
            return tokens

    Observed.__name__ = Observed.__qualname__ = own.__name__
    tokenizer.__class__ = Observed
    return flags


def _by_text(flags: list[bool], texts: int) -> list[bool]:
    """Returns whether each text is cut, by one of several rounds; or, if unknown, whether any."""
    if len(flags) % texts:
        return [any(flags)] * texts
    return [any(flags[i::texts]) for i in range(texts)]
