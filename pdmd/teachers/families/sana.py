r"""SANA: text-to-image transformers of 0.6 B to 4.8 B parameters with linear attention.

The network takes :math:`1000 \sigma` as its time and predicts the velocity
:math:`\varepsilon - x_0` of the latents of an autoencoder that compresses by 32. Gemma 2 encodes
the text behind an instruction that asks for a better prompt; of the tokens the first and the last
299 are kept, masked. The empty text, which stands for no prompt, has no instruction before it, and
neither has a negative prompt.
Guidance is the classical extrapolation, and the shift of time is 3.

References:
    Xie et al., SANA: Efficient High-Resolution Image Synthesis with Linear Diffusion
    Transformers, arXiv:2410.10629.
    Xie et al., SANA 1.5, arXiv:2501.18427.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from pdmd.teachers.conditioning.prompts import EncodedText
from pdmd.teachers.conditioning.text_lengths import text_mask
from pdmd.teachers.families.layouts import PipelineLayout
from pdmd.teachers.families.text import TextTeacher
from pdmd.teachers.families.tokens import check_size
from pdmd.typing import Condition, Latents

__all__ = ["SanaTeacher"]


class SanaTeacher(TextTeacher):
    r"""SANA 1.0 or 1.5 over latents of shape :math:`(32, H / 32, W / 32)`.

    Every time in [0, 1] can be evaluated. Conditions have ``prompt`` and ``mask``. Random weights
    are of the 1.6 B network of SANA 1.0 by default; those of 1.5 have
    ``qk_norm="rms_norm_across_heads"``. The pipeline's rounding of a size to one of its aspect
    ratios is not applied: a size is taken as given.

    Args:
        backbone: A ``SanaTransformer2DModel`` of diffusers.
        height: Height of an image, a multiple of the compression times the network's patch.
        width: Width of an image, as the height.
        compression: Pixels to one latent in height and width.
        arguments: As :class:`~pdmd.teachers.families.text.TextTeacher` takes.

    Raises:
        ValueError: If the size does not fit, or the network takes guidance as an input (SANA
            Sprint, itself a student of few steps) or a table of positions (the 4K weights).
    """

    layout = PipelineLayout(
        pipeline="SanaPipeline",
        network="SanaTransformer2DModel",
        vae="AutoencoderDC",
        scheduler="DPMSolverMultistepScheduler",
        task="text-to-image",
        time_scale=1000.0,
        proposes=False,
    )
    released = {
        "num_layers": 20,
        "num_attention_heads": 70,
        "attention_head_dim": 32,
        "num_cross_attention_heads": 20,
        "cross_attention_head_dim": 112,
        "caption_channels": 2304,
        "latent_channels": 32,
        "qk_norm": None,
    }
    options = {"height": 1024, "width": 1024, "compression": 32}
    condition_keys = ("prompt", "mask")
    text_length = random_length = 300
    masked = True

    @classmethod
    def latents(
        cls, config: Any, *, height: int, width: int, compression: int, **_: Any
    ) -> tuple[int, ...]:
        check_size(compression * config.patch_size, height=height, width=width)
        for name, usual in (
            ("guidance_embeds", False),
            ("interpolation_scale", None),
            ("timestep_scale", 1.0),
        ):
            if config.get(name, usual) != usual:
                raise ValueError(
                    f"this transformer has {name} = {config[name]}; SANA Sprint and the weights "
                    "with a table of positions are not supported"
                )
        return config.in_channels, height // compression, width // compression

    @classmethod
    def network_config(cls, *, latent_channels: int, **sizes: Any) -> dict[str, Any]:
        return {
            **sizes,
            "in_channels": latent_channels,
            "out_channels": latent_channels,
            "cross_attention_dim": sizes["num_attention_heads"] * sizes["attention_head_dim"],
        }

    @classmethod
    def encode_texts(cls, pipeline: Any, texts: list[str], length: int | None) -> dict[str, Any]:
        call = inspect.signature(type(pipeline).__call__).parameters
        instruction = call["complex_human_instruction"].default
        order = sorted(range(len(texts)), key=lambda i: not texts[i])  # empty texts come last
        parts: list[dict[str, Any]] = []
        for empty in (False, True):
            chosen = [texts[i] for i in order if (not texts[i]) == empty]
            if chosen:
                before = None if empty else instruction
                parts.append(cls._encoded(pipeline, chosen, length, before))
        back = torch.tensor(order).argsort()
        return {key: torch.cat([p[key] for p in parts])[back] for key in cls.condition_keys}

    @classmethod
    def _encoded(
        cls, pipeline: Any, texts: list[str], length: int | None, instruction: Any = None
    ) -> dict[str, Any]:
        prompt, mask, *_ = pipeline.encode_prompt(
            texts,
            do_classifier_free_guidance=False,
            max_sequence_length=length,
            complex_human_instruction=instruction,
        )
        return {"prompt": prompt, "mask": mask.bool()}

    def encode_negative(self, text: str) -> Condition:
        """Encodes a text without the instruction, as the pipeline does.

        Raises:
            ValueError: If there is no text encoder, as with embeddings, which have it.
        """
        from tensordict import TensorDict

        prompts = self._text()
        if not isinstance(prompts, EncodedText):
            raise ValueError(
                f"{prompts} have no negative prompt {text!r:.60}, which is encoded without the "
                "instruction; load the teacher with its text encoder, or leave the negative "
                "prompt out"
            )
        length = prompts.how.get("text_length")

        def embed(pipeline: Any, texts: list[str]) -> TensorDict:
            return TensorDict(self._encoded(pipeline, texts, length), batch_size=[len(texts)])

        return prompts.encode_by(embed, [text])

    def default_shift(self) -> float:
        return 3.0

    @property
    def call_arguments(self) -> dict[str, Any]:
        return {**super().call_arguments, "use_resolution_binning": False}

    def network(self, x_t: Latents, t: Tensor, condition: Condition) -> Latents:
        """Evaluates the network at 1000 times the time."""
        rows = self.conditioned(condition, x_t)
        dtype, mask = self.backbone.dtype, text_mask(rows)
        value = self.backbone(
            x_t.to(dtype),
            encoder_hidden_states=rows["prompt"].to(dtype),
            timestep=(1000 * t).float(),
            encoder_attention_mask=mask if mask is None else mask.to(x_t.device),
            return_dict=False,
        )[0]
        return value[:, : x_t.shape[1]].to(x_t.dtype)  # without a learned variance
