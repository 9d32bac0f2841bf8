"""Tiny networks of every family with a plan, and their inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pdmd.teachers.packaged.transformer import ImageTransformer
from pdmd.teachers.packaged.video_transformer import VideoTransformer

FAMILIES = (
    "image",
    "video",
    "wan",
    "wan_image",
    "qwen",
    "qwen_masked",
    "qwen_edit",
    "flux",
    "sd3",
)


@dataclass
class Case:
    """A network, the argument that carries the latents, and the other arguments."""

    network: nn.Module
    latents: str
    arguments: dict[str, Any]

    def __call__(self, x: Tensor) -> Tensor:
        y = self.network(**{self.latents: x}, **self.arguments)
        return y[0] if isinstance(y, tuple) else y

    def rows(self, index: Tensor) -> Case:
        """Selects samples of the batch, with their arguments as new leaves."""
        taken = dict(self.arguments)
        for name, value in taken.items():
            if isinstance(value, Tensor) and not name.endswith("_ids"):
                taken[name] = value.detach()[index].requires_grad_(value.requires_grad)
            elif isinstance(value, list):
                taken[name] = [value[i] for i in index]
        return Case(self.network, self.latents, taken)


def case(family: str, batch: int = 2) -> tuple[Case, Tensor]:
    """Builds a family's network and latents, with random values of all parameters."""
    torch.manual_seed(0)
    network, latents, arguments, shape = _BUILDERS[family](batch)
    for parameter in network.parameters():
        parameter.data.add_(0.1 * torch.randn(parameter.shape))
    for name, value in arguments.items():
        if name.startswith(("encoder_hidden_states", "pooled")) and value.is_floating_point():
            arguments[name] = value.requires_grad_(not name.endswith("mask"))
    x = torch.randn(batch, *shape)
    return Case(network.train(), latents, arguments), x


def _image(batch):
    network = ImageTransformer(width=32, depth=2, heads=4)
    arguments = {"t": torch.rand(batch), "label": torch.arange(batch)}
    return network, "x", arguments, (1, 8, 8)


def _video(batch):
    network = VideoTransformer(frames=4, image_size=8, width=32, depth=2, heads=4, vocabulary=6)
    arguments = {"t": torch.rand(batch), "tokens": torch.arange(4 * batch).reshape(batch, 4) % 6}
    return network, "x", arguments, (1, 4, 8, 8)


def _wan(batch, image=False):
    from diffusers import WanTransformer3DModel

    network = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=4,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
        cross_attn_norm=True,
        rope_max_seq_len=32,
        image_dim=16 if image else None,
        added_kv_proj_dim=48 if image else None,
    )
    arguments = {
        "timestep": 1000 * torch.rand(batch),
        "encoder_hidden_states": torch.randn(batch, 5, 16),
        "return_dict": False,
    }
    if image:  # an image beside 512 text tokens, and one time per token
        arguments["timestep"] = 1000 * torch.rand(batch, 32)
        arguments["encoder_hidden_states"] = torch.randn(batch, 512, 16)
        arguments["encoder_hidden_states_image"] = torch.randn(batch, 3, 16)
    return network, "hidden_states", arguments, (4, 2, 8, 8)


def _qwen(batch, masked=False, edited=False):
    from diffusers import QwenImageTransformer2DModel

    network = QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=4,
        joint_attention_dim=16,
        axes_dims_rope=(8, 4, 4),
        zero_cond_t=edited,
    )
    images = [(1, 4, 4), (1, 3, 2)] if edited else [(1, 4, 4)]
    arguments = {
        "encoder_hidden_states": torch.randn(batch, 6, 16),
        "timestep": torch.rand(batch),
        "img_shapes": [images] * batch,
        "return_dict": False,
    }
    if masked:
        mask = torch.ones(batch, 6)
        mask[0, 4:] = 0
        mask[-1, 2:] = 0
        arguments["encoder_hidden_states_mask"] = mask
    return network, "hidden_states", arguments, (22 if edited else 16, 16)


def _flux(batch):
    from diffusers import FluxTransformer2DModel

    network = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=4,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 4, 8),
    )
    rows = torch.arange(4.0)
    arguments = {
        "encoder_hidden_states": torch.randn(batch, 6, 16),
        "pooled_projections": torch.randn(batch, 16),
        "timestep": torch.rand(batch),
        "img_ids": torch.cartesian_prod(torch.zeros(1), rows, rows),
        "txt_ids": torch.zeros(6, 3),
        "return_dict": False,
    }
    return network, "hidden_states", arguments, (16, 16)


def _sd3(batch):
    from diffusers import SD3Transformer2DModel

    network = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=16,
        caption_projection_dim=32,
        pooled_projection_dim=16,
        out_channels=4,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
        dual_attention_layers=(0,),
    )
    arguments = {
        "encoder_hidden_states": torch.randn(batch, 6, 16),
        "pooled_projections": torch.randn(batch, 16),
        "timestep": 1000 * torch.rand(batch),
        "return_dict": False,
    }
    return network, "hidden_states", arguments, (4, 8, 8)


_BUILDERS = {
    "image": _image,
    "video": _video,
    "wan": _wan,
    "wan_image": lambda batch: _wan(batch, image=True),
    "qwen": _qwen,
    "qwen_masked": lambda batch: _qwen(batch, masked=True),
    "qwen_edit": lambda batch: _qwen(batch, edited=True),
    "flux": _flux,
    "sd3": _sd3,
}
