"""Parallel plans of diffusers' transformers.

Each is a function of the network, because some layers are present in some configurations only.
diffusers' tensor plans are not used, because they do not sum the gradients of norms that heads
share; nor is its context parallelism, because it cannot be differentiated twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from pdmd.distributed.plans import (
    ContextPlan,
    Input,
    Output,
    ParallelPlan,
    TensorPlan,
    matching,
)
from pdmd.distributed.styles import (
    Columnwise,
    NormAcrossHeads,
    PackedRowwise,
    PerHead,
    Rowwise,
    Style,
)

__all__ = [
    "blocks",
    "double_and_single",
    "flux",
    "qwen_image",
    "stable_diffusion_3",
    "text_and_visual",
    "wan",
    "z_image",
]

QKV = ("to_q", "to_k", "to_v")
ADDED_QKV = ("add_q_proj", "add_k_proj", "add_v_proj")
NORMS = ("norm_q", "norm_k", "norm_added_q", "norm_added_k")


def wan(network: nn.Module) -> ParallelPlan:
    """Returns the plan of Wan 2.1 and 2.2.

    Text tokens are whole on every rank; the norm of queries and keys is over all heads.
    """
    styles: dict[str, Style] = {}
    for attention in ("blocks.*.attn1", "blocks.*.attn2"):
        styles |= _attention(attention, (*QKV, "add_k_proj", "add_v_proj"), NormAcrossHeads())
    styles |= _mlp("blocks.*.ffn")
    return ParallelPlan(
        units=("blocks.*",),
        tensor=_tensor(
            network, styles, {"blocks.*.attn1": ("heads",), "blocks.*.attn2": ("heads",)}
        ),
        context=ContextPlan(
            split=(
                Output("rope", dim=1, index=0, stream="image"),
                Output("rope", dim=1, index=1, stream="image"),
                Input("blocks.0", "hidden_states", dim=1, stream="image"),
                # one time per token, as in 2.2 5B
                Input("", "timestep", dim=1, ndim=2, stream="image"),
            ),
            gather=(Output("proj_out", dim=1, stream="image"),),
            attention={"blocks.*.attn1": "heads"},
        ),
    )


def qwen_image(network: nn.Module) -> ParallelPlan:
    """Returns the plan of Qwen-Image; image and text tokens are split, each with its mask."""
    block = "transformer_blocks.*"
    styles = _attention(f"{block}.attn", (*QKV, *ADDED_QKV), PerHead())
    styles |= _mlp(f"{block}.img_mlp") | _mlp(f"{block}.txt_mlp")
    return ParallelPlan(
        units=(block,),
        tensor=_tensor(network, styles, {f"{block}.attn": ("heads", "inner_dim")}),
        context=ContextPlan(
            split=(
                Output("pos_embed", dim=0, index=0, stream="image"),
                Output("pos_embed", dim=0, index=1, stream="text"),
                Input("transformer_blocks.0", "hidden_states", dim=1, stream="image"),
                Input("transformer_blocks.0", "encoder_hidden_states", dim=1, stream="text"),
                Input(block, "encoder_hidden_states_mask", dim=1, stream="text"),
                Input(block, "modulate_index", dim=1, stream="image"),
            ),
            gather=(Output("proj_out", dim=1, stream="image"),),
            attention={f"{block}.attn": "heads"},
        ),
    )


def flux(network: Any) -> ParallelPlan:
    """Returns the plan of Flux; the last layer of a single block packs attention and MLP."""
    double, single = "transformer_blocks.*", "single_transformer_blocks.*"
    styles = _attention(f"{double}.attn", (*QKV, *ADDED_QKV), PerHead())
    styles |= _mlp(f"{double}.ff") | _mlp(f"{double}.ff_context")
    styles |= _attention(f"{single}.attn", QKV, PerHead())
    styles[f"{single}.proj_mlp"] = Columnwise()
    if len(network.single_transformer_blocks):
        hidden = network.single_transformer_blocks[0].mlp_hidden_dim
        styles[f"{single}.proj_out"] = PackedRowwise((network.inner_dim, hidden))
    attention = _present(network, (f"{double}.attn", f"{single}.attn"))
    return ParallelPlan(
        units=_present(network, (double, single)),
        tensor=_tensor(network, styles, dict.fromkeys(attention, ("heads",))),
        context=ContextPlan(
            split=(
                Input("", "hidden_states", dim=1, stream="image"),
                Input("", "encoder_hidden_states", dim=1, stream="text"),
                Input("", "img_ids", dim=-2, stream="image"),
                Input("", "txt_ids", dim=-2, stream="text"),
            ),
            gather=(Output("proj_out", dim=1, stream="image"),),
            attention=dict.fromkeys(attention, "heads"),
        ),
    )


def stable_diffusion_3(network: nn.Module) -> ParallelPlan:
    """Returns the plan of Stable Diffusion 3 and 3.5.

    Image and text tokens are split; a second attention, if there is one, sees the image alone.
    """
    block = "transformer_blocks.*"
    styles = _attention(f"{block}.attn", (*QKV, *ADDED_QKV), PerHead())
    styles |= _attention(f"{block}.attn2", QKV, PerHead())
    styles |= _mlp(f"{block}.ff") | _mlp(f"{block}.ff_context")
    attention = _present(network, (f"{block}.attn", f"{block}.attn2"))
    return ParallelPlan(
        units=(block,),
        tensor=_tensor(network, styles, dict.fromkeys(attention, ("heads", "inner_dim"))),
        context=ContextPlan(
            split=(
                Output("pos_embed", dim=1, stream="image"),
                Output("context_embedder", dim=1, stream="text"),
            ),
            gather=(Output("proj_out", dim=1, stream="image"),),
            attention=dict.fromkeys(attention, "heads"),
            streams={f"{block}.attn2": ("image",)},
        ),
    )


def blocks(network: nn.Module) -> ParallelPlan:
    """Returns a plan of blocks only, as of LTX-Video: neither weights nor tokens are split."""
    return ParallelPlan(units=("transformer_blocks.*",))


def double_and_single(network: nn.Module) -> ParallelPlan:
    """Returns a plan of blocks of two streams and of one; neither weights nor tokens are split."""
    units = ("transformer_blocks.*", "single_transformer_blocks.*")
    return ParallelPlan(units=_present(network, units))


def text_and_visual(network: nn.Module) -> ParallelPlan:
    """Returns the plan of Kandinsky 5: blocks only; neither weights nor tokens are split."""
    return ParallelPlan(units=("text_transformer_blocks.*", "visual_transformer_blocks.*"))


def z_image(network: nn.Module) -> ParallelPlan:
    """Returns the plan of Z-Image: blocks only; neither weights nor tokens are split."""
    units = ("noise_refiner.*", "context_refiner.*", "layers.*")
    return ParallelPlan(units=_present(network, units))


def _attention(path: str, projections: Iterable[str], norm: Style) -> dict[str, Style]:
    styles: dict[str, Style] = {f"{path}.{name}": Columnwise() for name in projections}
    styles |= {f"{path}.{name}": norm for name in NORMS}
    return styles | {f"{path}.to_out.0": Rowwise(), f"{path}.to_add_out": Rowwise()}


def _mlp(path: str) -> dict[str, Style]:
    return {f"{path}.net.0.proj": Columnwise(), f"{path}.net.2": Rowwise()}


def _tensor(
    network: nn.Module, styles: Mapping[str, Style], divided: Mapping[str, tuple[str, ...]]
) -> TensorPlan:
    """Keeps the styles of existing layers, and checks that attention has no other layers."""
    kept = {pattern: style for pattern, style in styles.items() if _finds(network, pattern)}
    named = {path for pattern in kept for path, _ in matching(network, pattern)}
    for pattern in divided:
        for path, attention in matching(network, pattern):
            for name, layer in attention.named_modules(prefix=path):
                if any(True for _ in layer.parameters(recurse=False)) and name not in named:
                    raise ValueError(
                        f"{type(network).__name__} has a layer {name} that its tensor plan does "
                        "not name; register a custom plan for this class"
                    )
    return TensorPlan(kept, divided)


def _present(network: nn.Module, patterns: Iterable[str]) -> tuple[str, ...]:
    return tuple(pattern for pattern in patterns if _finds(network, pattern))


def _finds(network: nn.Module, pattern: str) -> bool:
    try:
        return bool(matching(network, pattern))
    except ValueError:
        return False
