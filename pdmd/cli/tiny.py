"""Tiny recipes: a preset over small random networks of the same classes.

A recipe of a large model is walked from its prompts to an exported student in seconds: the
networks are random and tiny (:mod:`pdmd.teachers.families.tiny.pipelines`), as are the samples,
and there are few updates. What the recipe is about stays: its phases, steps, objectives, roles
and guidance.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from pdmd.cli.config import DistillConfig

__all__ = ["TINY_FOLDER", "shrink", "tiny_folder", "write_tiny_teacher"]

TINY_FOLDER = "tiny_pipeline"
"""The folder of the tiny pipeline within the run folder."""
RANK = 4
MAX_UPDATES = 2
MAX_FAKE_UPDATES = 2
BATCH = 2
SAMPLES = 100


def shrink(config: DistillConfig) -> DistillConfig:
    """Returns the configuration of a recipe at tiny size.

    Args:
        config: The recipe.

    Raises:
        ValueError: If there is no tiny pipeline of its teacher.
    """
    from pdmd.teachers.families.tiny.pipelines import TINY

    config = copy.deepcopy(config)
    if config.teacher.name not in TINY:
        raise ValueError(
            f"--tiny needs a model family, one of {', '.join(TINY)}; {config.teacher.name!r} is "
            "small as it is"
        )
    config.out = f"{config.out}_tiny"
    config.teacher.arguments = {
        "dtype": "float32",
        "prompts": "validation_prompts",
        **TINY[config.teacher.name].options,
    }
    train = config.train
    train.updates = min(train.updates, MAX_UPDATES)
    train.fake_updates = min(train.fake_updates, MAX_FAKE_UPDATES)
    train.phase = tuple(_shrunk(table) for table in train.phase)
    train.batch_size, train.accumulate, train.fake_accumulate = BATCH, 1, 1
    train.checkpoint_every = 1
    config.lora.rank = min(config.lora.rank, RANK)
    config.lora.fake_rank = min(config.lora.fake_rank, RANK)
    config.parallel.cp = config.parallel.tp = 1
    config.parallel.precision = "float32"
    config.health.every, config.health.samples, config.health.teacher_steps = MAX_UPDATES, BATCH, 2
    config.validation.every, config.validation.teacher_steps = MAX_UPDATES, 2
    config.evaluate.samples, config.evaluate.teacher_steps = SAMPLES, 2
    return config


def _shrunk(table: Any) -> Any:
    """Returns settings of phases with few updates."""
    most = {"updates": MAX_UPDATES, "fake_updates": MAX_FAKE_UPDATES}
    return {key: min(value, most[key]) if key in most else value for key, value in table.items()}


def tiny_folder(config: DistillConfig) -> Path:
    """Points a shrunk configuration at the tiny pipeline of its run folder.

    Args:
        config: The configuration, which is changed.

    Returns:
        The folder of the pipeline.
    """
    from pdmd.teachers.base import teachers
    from pdmd.teachers.families.tiny.pipelines import IMAGE_PROMPTS

    folder = Path(config.out) / TINY_FOLDER
    arguments = config.teacher.arguments
    arguments["folder"] = str(folder)
    takes_images = teachers[config.teacher.name].__self__.layout.takes_image
    if takes_images and arguments.get("prompts") == "validation_prompts":
        arguments["prompts"] = str(folder / IMAGE_PROMPTS)
    return folder


def write_tiny_teacher(config: DistillConfig) -> str:
    """Writes the tiny pipeline of a configuration, unless it is there.

    Args:
        config: The configuration, after :func:`tiny_folder`.

    Returns:
        A sentence for the user.
    """
    from pdmd.teachers.families.tiny.pipelines import write_tiny_pipeline

    folder = Path(str(config.teacher.arguments["folder"]))
    if not (folder / "model_index.json").is_file():
        write_tiny_pipeline(config.teacher.name, folder)
    return (
        f"--tiny: the networks in {folder} are small and random, so this walks the recipe and its "
        "samples show nothing"
    )
