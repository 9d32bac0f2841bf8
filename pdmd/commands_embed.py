"""The command that stores prompt embeddings."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

from pdmd.arguments import UsageError, check_numbers, parse, take_name

__all__ = ["run_embed"]


@dataclass(kw_only=True)
class EmbedOptions:
    """Encodes prompts with a teacher's text encoder, so that training needs none.

    PROMPTS is a text file (.txt, a prompt per line), JSON lines (.jsonl), a table (.json, .csv or
    .parquet), or the name or folder of a data set. Run again, the command goes on where it was
    interrupted. Training then reads the store instead of loading the text encoder: 'pdmd distill
    ... --teacher.arguments folder FOLDER embeddings URL'.
    """

    teacher: str = ""
    """A registered teacher that reads text: see 'pdmd teachers'."""
    arguments: dict[str, bool | int | float | str] = field(default_factory=dict)
    """Passed to the teacher by name, such as its folder: --arguments folder Qwen/Qwen-Image."""
    out: str = ""
    """The store: a folder, or a URL such as s3://bucket/prompts."""
    column: str = ""
    """The prompts' key or column; by default 'prompt' or 'text'."""
    split: str = "train"
    """Which part of a data set."""
    limit: int = 0
    """Prompts to read at most; 0 reads all."""
    batch_size: int = 16
    """Prompts encoded at a time."""
    shard_size: int = 512
    """Prompts in each file."""
    dtype: str = ""
    """The text encoder's type: bfloat16, float16 or float32; by default the teacher's."""
    device: str = "auto"
    """Where to encode: auto, cpu or cuda."""
    overwrite: bool = False
    """Replace other embeddings that are in the store."""
    progress: bool = True
    """Show a progress bar."""
    plugins: tuple[str, ...] = ()
    """Python modules to import first; they may register teachers."""


def run_embed(words: list[str]) -> int:
    """Runs ``pdmd embed``."""
    name, rest = take_name(words, "the prompts: a file or the name of a data set")
    options = parse(EmbedOptions, rest, "pdmd embed PROMPTS", flat=True)
    for flag, what in (("teacher", "a registered teacher"), ("out", "a folder or URL")):
        if not getattr(options, flag):
            raise UsageError(f"missing --{flag}: name {what}")
    sizes = {"batch_size": (1, 10**6), "shard_size": (1, 10**7), "limit": (0, 10**12)}
    check_numbers(options, **sizes)
    from pdmd.teachers.embeddings import embed
    from pdmd.teachers.sources import read_prompts

    encoder = _encoder(options)
    read = read_prompts(name, column=options.column, split=options.split, limit=options.limit)
    prompts = list(dict.fromkeys(read))
    if len(prompts) < len(read):
        print(f"{len(read) - len(prompts):,} of {len(read):,} prompts had come before; left out")
    try:
        index = embed(
            encoder,
            prompts,
            options.out,
            teacher=options.teacher,
            batch_size=options.batch_size,
            shard_size=options.shard_size,
            overwrite=options.overwrite,
            progress=options.progress,
        )
    except KeyboardInterrupt:
        print(
            f"pdmd: stopped; what is done is in {options.out}; run again to go on",
            file=sys.stderr,
        )
        return 130
    size = sum(shard.size for shard in index.shards)
    print(f"{len(prompts):,} prompts, {size / 1e6:,.1f} MB -> {options.out}")
    return 0


def _encoder(options: EmbedOptions) -> Any:
    from pdmd.teachers.base import import_plugins, outline_arguments
    from pdmd.teachers.image_prompts import EncodedImageText
    from pdmd.teachers.prompts import EncodedText, PromptEmbeddings
    from pdmd.teachers.routed import RoutedTeacher
    from pdmd.training.config import TeacherConfig
    from pdmd.training.runtime import pick_device

    import_plugins(options.plugins)
    arguments = {**options.arguments}
    if "embeddings" in arguments:
        raise ValueError(
            f"--arguments embeddings {arguments['embeddings']!r} would take the text encoder's "
            "place; leave it out"
        )
    if options.dtype:
        arguments["dtype"] = options.dtype
    if "folder" in arguments:
        arguments.setdefault("device", str(pick_device(options.device)))
    config = TeacherConfig(name=options.teacher, arguments=arguments)
    config.check_name()
    config.arguments.update(outline_arguments(options.teacher))  # transformers stay unloaded
    teacher: Any = config.build()
    encoder = getattr(
        teacher.first if isinstance(teacher, RoutedTeacher) else teacher, "text", None
    )
    if encoder is None:
        raise ValueError(
            f"the teacher {options.teacher!r} reads no text, so there is nothing to embed; see "
            "'pdmd teachers'"
        )
    if isinstance(encoder, EncodedImageText):
        raise ValueError(
            f"prompts of {options.teacher!r} have first images, which are not stored; distill "
            "with its encoders"
        )
    if isinstance(encoder, PromptEmbeddings):
        raise ValueError(
            f"the teacher {options.teacher!r} has no text encoder without a folder; give "
            "--arguments folder PATH_OR_HUB_NAME"
        )
    inner = getattr(encoder, "inner", encoder)
    if isinstance(inner, EncodedText):
        inner.batch_size = options.batch_size
    return encoder
