"""The options of `pdmd evaluate`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pdmd.cli.config_files import read_config
from pdmd.cli.parallel_config import ParallelConfig
from pdmd.documents import read_toml

__all__ = ["NETWORKS", "EvaluateOptions"]

NETWORKS = ("vision", "clip", "video", "motion", "lpips")
"""The options that name the networks of metrics."""


@dataclass(kw_only=True)
class EvaluateOptions:
    """Compares a student with its teacher and prints a table.

    Without --metrics, the table is that of the packaged teachers and of latents. With them,
    samples are decoded and measured by pretrained networks, on the same prompts and noise for
    teacher and student; the rows that were measured are stored, so that an interrupted command
    goes on when it is run again. Under torchrun the ranks share the prompts.
    """

    metrics: tuple[str, ...] = ()
    """Metrics of decoded samples: diversity, clip, frechet, kernel, fvd, motion, lpips."""
    samples: int = 2000
    """Samples of each method; with --metrics, at most, in whole prompts of --seeds."""
    seeds: int = 8
    """Samples of each prompt, with --metrics."""
    teacher_steps: int = 50
    """Steps with which the teacher is sampled."""
    batch: int = 0
    """Samples that a rank draws together; 0 for about a million latent values."""
    seed: int = 1234
    """Seed of the samples."""
    prompts: str = ""
    """File of prompts, with --metrics; the teacher's by default."""
    guidance: tuple[float, ...] = ()
    """Guidance scale of the teacher; by default that of the distillation."""
    vision: str = ""
    """Vision network: a folder or hub name; facebook/dinov2-base by default."""
    clip: str = ""
    """Image-text network; openai/clip-vit-base-patch32 by default."""
    video: str = ""
    """Video network; MCG-NJU/videomae-base by default."""
    motion: str = ""
    """File of RAFT's weights."""
    lpips: str = ""
    """Network of LPIPS: alex, vgg or squeeze; alex by default."""
    fps: float = 16.0
    """Frames per second of videos."""
    folder: str = ""
    """Where measured rows, table and report are written; by default evaluation/ next to the
    student's folder."""
    out: str = ""
    """Also write the rows to this JSON file."""
    overwrite: bool = False
    """Measure again what is stored."""
    progress: bool = True
    """Show a progress bar."""
    arguments: dict[str, bool | int | float | str] = field(default_factory=dict)
    """Arguments of the teacher in the place of those that it was distilled with."""
    trust_source: bool = False
    """Use the URLs and cache folders that the student's folder names."""
    plugins: tuple[str, ...] = ()
    """Python modules to import first; they may register the student's teacher, or metrics."""
    parallel: ParallelConfig = field(default_factory=lambda: ParallelConfig(precision="auto"))
    """Where networks compute, and in which type; by default in that of the run."""

    def choose_precision(self, name: str) -> None:
        """Chooses the precision of the run where none is given.

        Args:
            name: The student folder, or the run folder that contains it.
        """
        if self.parallel.precision != "auto":
            return
        for folder in (Path(name), Path(name).parent):
            if (folder / "config.toml").is_file():
                config = read_config(read_toml(folder / "config.toml")[1])
                self.parallel.precision = config.parallel.precision
                return
