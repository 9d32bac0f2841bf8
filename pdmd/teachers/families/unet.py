"""Text-to-image UNets over latents: what Stable Diffusion and SDXL share."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from pdmd.teachers.families.discrete_time_teacher import DiscreteTimeTeacher
from pdmd.teachers.families.discrete_timesteps import SCALED_LINEAR, own_size
from pdmd.teachers.families.text import TextTeacher
from pdmd.teachers.families.tokens import check_size
from pdmd.typing import Condition, Latents

__all__ = ["UNetTeacher"]


class UNetTeacher(DiscreteTimeTeacher, TextTeacher):
    r"""A ``UNet2DConditionModel`` over latents of shape :math:`(C, H / 8, W / 8)`.

    A subclass states ``added``, and may override :meth:`added_inputs`.

    Args:
        backbone: The network.
        height: Height of an image; the network's own by default.
        width: Width of an image, as the height.
        compression: Pixels to one latent, in height and width.
        arguments: As :class:`~pdmd.teachers.families.text.TextTeacher` and
            :class:`~pdmd.teachers.families.discrete_time_teacher.DiscreteTimeTeacher` take.

    Raises:
        ValueError: If the size is no multiple of the compression, or the network takes more than
            noisy latents and text.

    Attributes:
        added: The ``addition_embed_type`` of the family's networks.
    """

    options = {"height": None, "width": None, "compression": 8}
    betas = SCALED_LINEAR
    random_length = 77
    added: ClassVar[str | None] = None

    @classmethod
    def complete_options(cls, config: Any, options: dict[str, Any]) -> dict[str, Any]:
        cls.check_network(config)
        return own_size(config, options, options["compression"])

    @classmethod
    def latents(
        cls, config: Any, *, height: int, width: int, compression: int, **_: Any
    ) -> tuple[int, ...]:
        check_size(compression, height=height, width=width)
        return config.in_channels, height // compression, width // compression

    @classmethod
    def check_network(cls, config: Any) -> None:
        """Rejects networks of other families, by their configuration.

        Raises:
            ValueError: If it is one.
        """
        if config.in_channels != config.out_channels:
            raise ValueError(
                f"this UNet has {config.in_channels} input and {config.out_channels} output "
                "channels, so it needs an image besides noise; only text-to-image networks are "
                "supported"
            )
        if config.addition_embed_type != cls.added:
            raise ValueError(
                f"this UNet has addition_embed_type {config.addition_embed_type!r}, and "
                f"{cls.__name__} takes {cls.added!r}; load it with the teacher of its family"
            )
        for name in ("class_embed_type", "num_class_embeds", "encoder_hid_dim_type"):
            if config.get(name) is not None:
                raise ValueError(f"UNets with {name} are not supported, got {config[name]!r}")
        if config.time_cond_proj_dim is not None:
            raise ValueError(
                "this UNet takes guidance as an input (time_cond_proj_dim); only those guided by "
                "two evaluations are supported"
            )

    def network(self, x_t: Latents, t: Tensor, condition: Condition) -> Latents:
        """Evaluates the UNet at its own time."""
        rows = self.conditioned(condition, x_t)
        return self.evaluate(
            x_t,
            t,
            encoder_hidden_states=rows["prompt"].to(self.backbone.dtype),
            added_cond_kwargs=self.added_inputs(rows, x_t),
        )

    def added_inputs(self, rows: Any, x_t: Latents) -> dict[str, Tensor] | None:
        """Returns the network's inputs besides text; here none.

        Args:
            rows: The condition.
            x_t: The noisy latents.
        """
        return None
