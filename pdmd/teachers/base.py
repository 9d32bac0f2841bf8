"""Teachers: denoisers that can be distilled.

A new teacher is about twenty lines: its schedule and kind in the constructor, its network, and
how prompts become conditions.
"""

from __future__ import annotations

import importlib
import inspect
from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pdmd.diffusion.denoisers import Denoiser
from pdmd.registry import Registry
from pdmd.typing import Condition, Conditions, Latents, repeat_condition

if TYPE_CHECKING:
    from tensordict import TensorDict

__all__ = ["Teacher", "import_plugins", "networks", "outline_arguments", "teachers"]


class Teacher(Denoiser):
    """A denoiser that knows its prompts.

    A subclass implements :meth:`~pdmd.diffusion.denoisers.Denoiser.network` and :meth:`encode`.

    Attributes:
        shift: The shift of time that its family recommends for plans and sampling at its
            resolution (:class:`~pdmd.diffusion.schedules.Shifted`); 1 is none.
    """

    shift: float = 1.0

    @abstractmethod
    def encode(self, prompts: Sequence[Any]) -> Condition:
        """Turns prompts into a condition.

        Args:
            prompts: One prompt per sample, of whatever type the teacher takes (text, a class
                index); ``None`` stands for no prompt, which guidance needs.

        Returns:
            A TensorDict with batch size ``(len(prompts),)``, or ``None`` for a teacher that takes
            no conditions.

        Raises:
            ValueError: If a prompt is not one the teacher takes.
        """

    def conditions(self, prompts: Sequence[Any]) -> Conditions | None:
        """Turns all prompts of a distillation into conditions.

        Args:
            prompts: As :meth:`encode` takes.

        Returns:
            What :meth:`encode` returns or, of prompts too many for memory, something that reads
            rows of it as they are asked for.

        Raises:
            ValueError: As :meth:`encode`.
        """
        return self.encode(prompts)

    @property
    def prompts(self) -> Sequence[Any]:
        """The prompts a distillation draws from unless it is given others."""
        return [None]

    def guide(
        self, conditional: Latents, unconditional: Latents, scale: float | Tensor
    ) -> Latents:
        """Combines the predictions with and without a condition, by the family's rule.

        Args:
            conditional: The prediction with the condition, with shape :math:`(B, *)`.
            unconditional: The one without.
            scale: The guidance scale: a number, or a tensor that multiplies latents.

        Returns:
            The guided prediction; here the classical extrapolation.
        """
        return unconditional + scale * (conditional - unconditional)

    def unconditional(self, condition: TensorDict, null: TensorDict) -> TensorDict:
        """Returns what guidance leads away from: conditions without their prompts.

        Here nothing of a condition is kept. A family whose conditions hold more than the prompt,
        such as a first image, keeps that.

        Args:
            condition: The conditions, with batch size :math:`(B)`.
            null: The condition of no prompt, with batch size :math:`(1)`.

        Returns:
            Conditions with batch size :math:`(B)`.
        """
        rows: Any = repeat_condition(null, int(condition.batch_size[0]))
        return rows


teachers: Registry[Any] = Registry(
    "teacher",
    {
        "ddpm": "pdmd.teachers.families.ddpm:DDPMTeacher.from_arguments",
        "digits": "pdmd.teachers.packaged.digits:DigitsTeacher.from_package",
        "dit": "pdmd.teachers.families.dit:DiTTeacher.from_arguments",
        "flux": "pdmd.teachers.families.flux:FluxTeacher.from_arguments",
        "glyphs": "pdmd.teachers.packaged.glyphs:GlyphsTeacher.from_arguments",
        "ltx": "pdmd.teachers.families.ltx:LTXTeacher.from_arguments",
        "mixture": "pdmd.teachers.mixture:MixtureTeacher.random",
        "qwen_image": "pdmd.teachers.families.qwen_image:QwenImageTeacher.from_arguments",
        "sd3": "pdmd.teachers.families.sd3:SD3Teacher.from_arguments",
        "sdxl": "pdmd.teachers.families.sdxl:SDXLTeacher.from_arguments",
        "stable_diffusion": (
            "pdmd.teachers.families.stable_diffusion:StableDiffusionTeacher.from_arguments"
        ),
        "wan": "pdmd.teachers.families.wan:WanTeacher.from_arguments",
        "wan_i2v": "pdmd.teachers.families.wan_image:WanImageTeacher.from_arguments",
        "z_image": "pdmd.teachers.families.z_image:ZImageTeacher.from_arguments",
    },
)
"""Factories of teachers by name. One that takes ``meta`` can build on the meta device, without
memory for its weights."""

networks: Registry[Any] = Registry("network", {"mlp": "pdmd.teachers.packaged.mlp:MlpDenoiser"})
"""Networks for students of teachers without weights. One is called with the teacher's
``schedule``, with ``kind``, ``dim`` and ``classes``, and with the configured arguments."""


def outline_arguments(name: str) -> dict[str, bool]:
    """Returns what makes a registered teacher build without memory for its weights, if it can."""
    return {"meta": True} if "meta" in inspect.signature(teachers[name]).parameters else {}


def import_plugins(modules: Sequence[str]) -> None:
    """Imports modules that register teachers of one's own.

    Args:
        modules: Names of Python modules.

    Raises:
        ValueError: If one cannot be imported.
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:  # whatever the module's own code raises
            raise ValueError(
                f"cannot import the plugin {module!r} ({error}); install it or put its folder on "
                "PYTHONPATH"
            ) from error
