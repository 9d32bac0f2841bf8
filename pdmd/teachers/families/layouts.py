"""Layouts: the parts of a family's pipeline in diffusers, and how it calls its network.

The facts that a family states once: teachers are loaded by them, and students are exported as
pipelines and adapter files by them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["PipelineLayout"]


@dataclass(frozen=True, kw_only=True)
class PipelineLayout:
    """A family's pipeline.

    Its network takes the time ``time_scale * t + time_offset`` as ``time_argument``.

    Attributes:
        pipeline: The pipeline's class.
        network: Its network's class.
        vae: Its VAE's class; empty for networks over pixels.
        slots: The subfolders of its networks. A second network serves times below the pipeline's
            ``boundary_ratio``.
        scheduler: The class of the scheduler whose configuration states the shift of time; empty
            where it does not.
        folder: Where the family's pipeline is if it ships with the package.
        task: The model hub's name of its task; empty where students are not exported.
        unexported: Why they are not, after "has no pipeline in diffusers that samples as it does
            here: ".
        time_scale: The network's time per ours.
        time_offset: The network's time at our 0.
        time_argument: The name of the time among the network's arguments.
        takes_sigmas: Whether a call of the pipeline takes its timesteps, as ``sigmas``.
        proposes: Whether the pipeline passes equal steps to its scheduler where a call does not.
        takes_image: Whether a call takes an image, as ``image``.
        unguided: The arguments of a call that turn guidance off.
        output: The name of a call's result.
        changes: Values of the configurations of its other parts that turn guidance off, where no
            argument does, by the path of the file.
        released: Patterns of the paths of linear maps in diffusers' network, and their paths in
            the network as first released, which adapter files of ComfyUI use; empty where the two
            are equal.
        prefix: The prefix of a path in such files.
        factors: Their names of a map's two factors, in the order of application.
        bare: A pattern of the released paths without an ``alpha``, whose second factor therefore
            includes the scale.
    """

    pipeline: str
    network: str
    vae: str = ""
    slots: tuple[str, ...] = ("transformer",)
    scheduler: str = "FlowMatchEulerDiscreteScheduler"
    folder: str = ""
    task: str = ""
    unexported: str = ""
    time_scale: float = 1.0
    time_offset: float = 0.0
    time_argument: str = "timestep"
    takes_sigmas: bool = True
    proposes: bool = True
    takes_image: bool = False
    unguided: Mapping[str, float] = field(default_factory=lambda: {"guidance_scale": 1.0})
    output: str = "images"
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    released: Mapping[str, str] = field(default_factory=dict)
    prefix: str = "diffusion_model"
    factors: tuple[str, str] = ("lora_down", "lora_up")
    bare: str = r"(?!)"

    @property
    def exported(self) -> bool:
        """Whether students of the family are exported as pipelines."""
        return bool(self.task)

    def released_name(self, path: str) -> str:
        """Returns the released path of a linear map in diffusers' network.

        Raises:
            ValueError: If it has none.
        """
        if not self.released:
            return path
        for pattern, name in self.released.items():
            path, found = re.subn(pattern, name, path)
            if found:
                return path
        raise ValueError(f"{path} of a {self.network} has no name in the released network")
