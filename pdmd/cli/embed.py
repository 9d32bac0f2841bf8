"""The command `pdmd embed`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pdmd.cli.arguments import UsageError, check_numbers, parse, take_name
from pdmd.cli.values import Arguments

__all__ = ["embed_command"]


@dataclass(kw_only=True)
class EmbedOptions:
    """Encodes prompts with a teacher's text encoder, so that training needs none.

    PROMPTS is a text file (.txt, a prompt per line), JSON lines (.jsonl), a table (.csv, .tsv,
    .json or .parquet), or the name or folder of a data set. For a teacher that continues a first
    image, for example wan_i2v, JSON lines, tables and data sets also name an image per prompt, as
    a path relative to the file or a URL; its encoding is stored too. An interrupted command
    resumes when it is run again. Training reads the store instead of loading encoders:
    'pdmd distill ... --teacher.arguments folder FOLDER embeddings URL'.
    """

    teacher: str = ""
    """A registered teacher that reads text: see 'pdmd teachers'."""
    arguments: Arguments = field(default_factory=dict)
    """Arguments of the teacher by name, for example --arguments folder Qwen/Qwen-Image."""
    out: str = ""
    """The store: a folder, or a URL, for example s3://bucket/prompts."""
    column: str = ""
    """Key or column of the prompts; 'prompt' or 'text' by default."""
    image_column: str = ""
    """Key or column of the first images; 'image' by default."""
    latents: str = ""
    """Key or column of real samples, pictures or videos, to encode by the VAE and store beside
    their prompts, for terms of the objective that take real samples."""
    stretch: bool = False
    """Stretch first images whose aspect ratio is not that of the video."""
    split: str = "train"
    """Split of a data set."""
    limit: int = 0
    """Largest number of prompts to read; 0 reads all."""
    batch_size: int = 16
    """Prompts per batch."""
    shard_size: int = 0
    """Prompts per file; 512 by default, 16 with first images."""
    dtype: str = ""
    """Data type of the text encoder: bfloat16, float16 or float32; the teacher's by default."""
    device: str = "auto"
    """Device of the encoder: auto, cpu or cuda."""
    overwrite: bool = False
    """Replace other embeddings in the store."""
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
    read = _read(name, options, size if encoder.image_keys else None)
    prompts = list(read.values())
    try:
        index = embed(
            encoder,
            prompts,
            options.out,
            teacher=options.teacher,
            batch_size=options.batch_size,
            shard_size=options.shard_size or (16 if encoder.image_keys else 512),
            overwrite=options.overwrite,
            progress=options.progress,
        )
    except KeyboardInterrupt:
        print(
            f"pdmd: stopped; finished prompts are in {options.out}; run again to resume",
            file=sys.stderr,
        )
        return 130
    size = sum(shard.size for shard in index.shards)
    print(f"{len(prompts):,} prompts, {size / 1e6:,.1f} MB -> {options.out}")
    return 0


def _read(name: str, options: EmbedOptions, size: Mapping[str, int] | None) -> dict[str, Any]:
    """Reads the prompts without duplicates, by name; with first images for a video size."""
    from pdmd.teachers.conditioning.image_prompts import check_proportions, name_of
    from pdmd.teachers.conditioning.prompt_files import read_image_prompts, read_prompts

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
        found = read_image_prompts(name, image_column=_pictures(options), **which)
        for prompt in found if not (options.stretch or options.latents) else ():
            check_proportions(prompt, size["height"], size["width"])
    prompts: dict[str, Any] = {}
    for prompt in found:  # the first of duplicates
        prompts.setdefault(name_of(prompt), prompt)
    if len(prompts) < len(found):
        left = len(found) - len(prompts)
        print(f"{left:,} of {len(found):,} prompts are duplicates; left out")
    return prompts


def _pictures(options: EmbedOptions) -> str:
    """Returns the column of pictures: of first images, or of real samples."""
    if not options.latents:
        return options.image_column
    for flag in ("image_column", "stretch"):
        if getattr(options, flag):
            raise UsageError(
                f"--{flag.replace('_', '-')} is for first images; of real samples the first frame "
                "is taken, and they are cropped: leave it out"
            )
    return options.latents


def _encoder(options: EmbedOptions) -> tuple[Any, Mapping[str, int]]:
    """Returns the encoder, and the size of videos."""
    from pdmd.cli.config import TeacherConfig
    from pdmd.distributed.runtime import pick_device
    from pdmd.teachers.base import import_plugins, outline_arguments
    from pdmd.teachers.conditioning.prompts import EncodedText, PromptEmbeddings
    from pdmd.teachers.routed import RoutedTeacher

    import_plugins(options.plugins)
    arguments = {**options.arguments}
    if "embeddings" in arguments:
        raise ValueError(
            f"--arguments embeddings {arguments['embeddings']!r} would replace the text "
            "encoder; remove it"
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
    size = getattr(teacher, "options", {})
    if options.latents:
        encoder = _sample_encoder(teacher, encoder, arguments)
    return encoder, size


def _sample_encoder(teacher: Any, texts: Any, arguments: Mapping[str, Any]) -> Any:
    """Returns the encoder of real samples: a teacher's text encoder and its VAE."""
    from pdmd.teachers.conditioning.encoded_samples import EncodedSamples

    read = getattr(teacher, "read_latent_encoder", None)
    if read is None:
        raise ValueError(f"{type(teacher).__name__} has no VAE by which --latents are encoded")
    folder = arguments.get("folder") or teacher.layout.folder
    place = {"dtype": arguments.get("dtype", "bfloat16"), "device": arguments.get("device", "cpu")}
    return EncodedSamples(
        texts,
        read(folder, **place),
        size=teacher.options,
        latent_shape=teacher.latent_shape,
        folder=folder,
    )
