r"""Teachers: pretrained denoisers that can be distilled.

A teacher predicts :math:`c_x x_0 + c_\varepsilon \varepsilon` from :math:`x_t`, :math:`t` and a
condition (:mod:`pdmd.diffusion.predictions`), and encodes prompts into conditions. A custom
teacher is about twenty lines: its schedule and kind in the constructor, its network, and
:meth:`Teacher.encode`.
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
    """A denoiser that encodes prompts into conditions.

    A subclass implements :meth:`~pdmd.diffusion.denoisers.Denoiser.network` and :meth:`encode`.

    Attributes:
        shift: The timestep shift that the family recommends at this resolution, for phase plans
            and sampling (:class:`~pdmd.diffusion.schedules.Shifted`); 1 for no shift.
    """

    shift: float = 1.0

    @abstractmethod
    def encode(self, prompts: Sequence[Any]) -> Condition:
        """Encodes prompts into a condition.

        Args:
            prompts: One prompt per sample, of a type the teacher accepts (a text, a class
                index); ``None`` is the null prompt of classifier-free guidance.

        Returns:
            A TensorDict with batch size :math:`(B)`, the number of prompts, or ``None`` if the
            teacher is unconditional.

        Raises:
            ValueError: If the teacher does not accept a prompt.
        """

    def encode_negative(self, text: str) -> Condition:
        """Turns a text that guidance leads away from into a condition of batch size 1.

        Args:
            text: The text.
        """
        return self.encode([text])

    def conditions(self, prompts: Sequence[Any]) -> Conditions | None:
        """Encodes all prompts of a distillation.

        Args:
            prompts: The prompts, as for :meth:`encode`.

        Returns:
            The conditions, in memory (as by :meth:`encode`) or read lazily from storage, indexed
            by row.

        Raises:
            ValueError: As :meth:`encode`.
        """
        return self.encode(prompts)

    def with_size(self, **sizes: int) -> Teacher:
        """Returns a teacher of another size of samples over the same networks.

        Args:
            sizes: The sizes to change, by name, such as ``height``, ``width`` and ``frames``.

        Raises:
            ValueError: If the teacher does not take a size, or its networks do not support it;
                here always.
        """
        raise ValueError(f"{type(self).__name__} has samples of one size")

    @property
    def prompts(self) -> Sequence[Any]:
        """The default prompts of a distillation."""
        return [None]

    def guide(
        self, conditional: Latents, unconditional: Latents, scale: float | Tensor
    ) -> Latents:
        r"""Applies the family's rule of classifier-free guidance.

        The default is :math:`f_\varnothing + g \, (f_c - f_\varnothing)`.

        Args:
            conditional: The conditional prediction :math:`f_c`, with shape :math:`(B, *)`.
            unconditional: The unconditional prediction :math:`f_\varnothing`, with the same shape.
            scale: The guidance scale :math:`g`: a number, or a tensor that broadcasts over
                latents.

        Returns:
            The guided prediction, with shape :math:`(B, *)`.
        """
        return unconditional + scale * (conditional - unconditional)

    def unconditional(self, condition: TensorDict, null: TensorDict) -> TensorDict:
        """Returns the unconditional counterpart of conditions, for guidance.

        The default replaces the whole condition by the null condition. A family whose conditions
        have fields besides the prompt, such as a first image, keeps these.

        Args:
            condition: The conditions, with batch size :math:`(B)`.
            null: The condition of the null prompt, with batch size :math:`(1)`.

        Returns:
            Conditions with batch size :math:`(B)`.
        """
        rows: Any = repeat_condition(null, int(condition.batch_size[0]))
        return rows


teachers: Registry[Any] = Registry(
    "teacher",
    {
        "chroma": "pdmd.teachers.families.chroma:ChromaTeacher.from_arguments",
        "clips": "pdmd.teachers.packaged.clips:ClipsTeacher.from_package",
        "cogvideox": "pdmd.teachers.families.cogvideox:CogVideoXTeacher.from_arguments",
        "cosmos_predict25": (
            "pdmd.teachers.families.cosmos_predict25:CosmosPredict25Teacher.from_arguments"
        ),
        "ddpm": "pdmd.teachers.families.ddpm:DDPMTeacher.from_arguments",
        "digits": "pdmd.teachers.packaged.digits:DigitsTeacher.from_package",
        "dit": "pdmd.teachers.families.dit:DiTTeacher.from_arguments",
        "edm": "pdmd.teachers.families.edm:EDMTeacher.from_arguments",
        "fashion": "pdmd.teachers.packaged.fashion:FashionTeacher.from_package",
        "flux": "pdmd.teachers.families.flux:FluxTeacher.from_arguments",
        "flux2": "pdmd.teachers.families.flux2:Flux2Teacher.from_arguments",
        "flux2_klein": "pdmd.teachers.families.flux2:Flux2KleinTeacher.from_arguments",
        "glyphs": "pdmd.teachers.packaged.glyphs:GlyphsTeacher.from_arguments",
        "hunyuan_video15": (
            "pdmd.teachers.families.hunyuan_video15:HunyuanVideo15Teacher.from_arguments"
        ),
        "kandinsky5": "pdmd.teachers.families.kandinsky5:Kandinsky5Teacher.from_arguments",
        "kandinsky5_image": (
            "pdmd.teachers.families.kandinsky5:Kandinsky5ImageTeacher.from_arguments"
        ),
        "ltx": "pdmd.teachers.families.ltx:LTXTeacher.from_arguments",
        "ltx2": "pdmd.teachers.families.ltx2:LTX2Teacher.from_arguments",
        "mixture": "pdmd.teachers.mixture:MixtureTeacher.random",
        "qwen_image": "pdmd.teachers.families.qwen_image:QwenImageTeacher.from_arguments",
        "qwen_image_edit": (
            "pdmd.teachers.families.qwen_image_edit:QwenImageEditTeacher.from_arguments"
        ),
        "sana": "pdmd.teachers.families.sana:SanaTeacher.from_arguments",
        "sd3": "pdmd.teachers.families.sd3:SD3Teacher.from_arguments",
        "sdxl": "pdmd.teachers.families.sdxl:SDXLTeacher.from_arguments",
        "sit": "pdmd.teachers.families.sit:SiTTeacher.from_arguments",
        "stable_diffusion": (
            "pdmd.teachers.families.stable_diffusion:StableDiffusionTeacher.from_arguments"
        ),
        "wan": "pdmd.teachers.families.wan:WanTeacher.from_arguments",
        "wan_i2v": "pdmd.teachers.families.wan_image:WanImageTeacher.from_arguments",
        "z_image": "pdmd.teachers.families.z_image:ZImageTeacher.from_arguments",
    },
)
"""Factories of teachers by name. A factory with an argument ``meta`` can build its teacher on the
meta device, without allocating weights."""

networks: Registry[Any] = Registry("network", {"mlp": "pdmd.teachers.packaged.mlp:MlpDenoiser"})
"""Networks for students of teachers without weights. One is called with the teacher's
``schedule``, with ``kind``, ``dim`` and ``classes``, and with the configured arguments."""


def outline_arguments(name: str) -> dict[str, bool]:
    """Returns the arguments that build a registered teacher on the meta device.

    Args:
        name: The registered name of the teacher.

    Returns:
        ``{"meta": True}``, or no arguments if its factory does not support the meta device.

    Raises:
        ValueError: If no teacher has this name.
    """
    return {"meta": True} if "meta" in inspect.signature(teachers[name]).parameters else {}


def import_plugins(modules: Sequence[str]) -> None:
    """Imports modules that register custom teachers, schedules or networks.

    Args:
        modules: Names of Python modules.

    Raises:
        ValueError: If a module cannot be imported.
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:  # the module's code may raise anything
            raise ValueError(
                f"cannot import the plugin {module!r} ({error}); install it or add its folder to "
                "PYTHONPATH"
            ) from error
