"""The command that stores prompt embeddings."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pdmd.cli.arguments import UsageError, check_numbers, parse, take_name

__all__ = ["embed_command"]


@dataclass(kw_only=True)
class EmbedOptions:
    """Encodes prompts with a teacher's text encoder, so that training needs none.

    PROMPTS is a text file (.txt, a prompt per line), JSON lines (.jsonl), a table (.json, .csv or
    .parquet), or the name or folder of a data set. For a teacher that goes on from a first image,
    such as wan_i2v, JSON lines, a table or a data set names an image beside each prompt, as a path
    relative to the file or a URL; what the teacher needs of it is stored too. Run again, the
    command goes on where it was interrupted. Training then reads the store instead of loading
    encoders: 'pdmd distill ... --teacher.arguments folder FOLDER embeddings URL'.
    """

    teacher: str = ""
    """A registered teacher that reads text: see 'pdmd teachers'."""
    arguments: dict[str, bool | int | float | str] = field(default_factory=dict)
    """Passed to the teacher by name, such as its folder: --arguments folder Qwen/Qwen-Image."""
    out: str = ""
    """The store: a folder, or a URL such as s3://bucket/prompts."""
    column: str = ""
    """The prompts' key or column; by default 'prompt' or 'text'."""
    image_column: str = ""
    """The first images' key or column; by default 'image'."""
    stretch: bool = False
    """Take first images of other proportions than the video's, and stretch them to its size."""
    split: str = "train"
    """Which part of a data set."""
    limit: int = 0
    """Prompts to read at most; 0 reads all."""
    batch_size: int = 16
    """Prompts encoded at a time."""
    shard_size: int = 0
    """Prompts in each file; by default 512, and 16 with first images."""
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


def embed_command(words: list[str]) -> int:
    """Runs ``pdmd embed``."""
    name, rest = take_name(words, "the prompts: a file or the name of a data set")
    options = parse(EmbedOptions, rest, "pdmd embed PROMPTS", flat=True)
    for flag, what in (("teacher", "a registered teacher"), ("out", "a folder or URL")):
        if not getattr(options, flag):
            raise UsageError(f"missing --{flag}: name {what}")
    sizes = {"batch_size": (1, 10**6), "shard_size": (0, 10**7), "limit": (0, 10**12)}
    check_numbers(options, **sizes)
    from pdmd.teachers.conditioning.embeddings import embed

    encoder, size = _encoder(options)
    read = _read(name, options, size if encoder.imaged else None)
    prompts = list(read.values())
    try:
        index = embed(
            encoder,
            prompts,
            options.out,
            teacher=options.teacher,
            batch_size=options.batch_size,
            shard_size=options.shard_size or (16 if encoder.imaged else 512),
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


def _read(name: str, options: EmbedOptions, size: Mapping[str, int] | None) -> dict[str, Any]:
    """Reads the prompts, each once, by name; with first images for videos of a size."""
    from pdmd.teachers.conditioning.image_prompts import check_proportions, name_of
    from pdmd.teachers.conditioning.sources import read_image_prompts, read_prompts

    which: Any = {"column": options.column, "split": options.split, "limit": options.limit}
    if size is None:
        for flag in ("image_column", "stretch"):
            if getattr(options, flag):
                raise UsageError(
                    f"--{flag.replace('_', '-')} is for first images, which {options.teacher!r} "
                    "does not take; leave it out"
                )
        found: Sequence[Any] = read_prompts(name, **which)
    else:
        found = read_image_prompts(name, image_column=options.image_column, **which)
        for prompt in found if not options.stretch else ():
            check_proportions(prompt, size["height"], size["width"])
    prompts: dict[str, Any] = {}
    for prompt in found:  # the first of those that are the same
        prompts.setdefault(name_of(prompt), prompt)
    if len(prompts) < len(found):
        left = len(found) - len(prompts)
        print(f"{left:,} of {len(found):,} prompts had come before; left out")
    return prompts


def _encoder(options: EmbedOptions) -> tuple[Any, Mapping[str, int]]:
    """Returns what encodes, and for videos their size."""
    from pdmd.cli.config import TeacherConfig
    from pdmd.distributed.runtime import pick_device
    from pdmd.teachers.base import import_plugins, outline_arguments
    from pdmd.teachers.conditioning.prompts import EncodedText, PromptEmbeddings
    from pdmd.teachers.routed import RoutedTeacher

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
    teacher = teacher.first if isinstance(teacher, RoutedTeacher) else teacher
    encoder = getattr(teacher, "text", None)
    if encoder is None:
        raise ValueError(
            f"the teacher {options.teacher!r} reads no text, so there is nothing to embed; see "
            "'pdmd teachers'"
        )
    if isinstance(encoder, PromptEmbeddings):
        raise ValueError(
            f"the teacher {options.teacher!r} has no text encoder without a folder; give "
            "--arguments folder PATH_OR_HUB_NAME"
        )
    inner = getattr(encoder, "inner", encoder)
    if isinstance(inner, EncodedText):
        inner.batch_size = options.batch_size
    return encoder, getattr(teacher, "options", {})
