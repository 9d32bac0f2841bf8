r"""Feature extractors of image metrics.

An extractor is any callable that maps a batch of images :math:`(B, C, H, W)` with values in
:math:`[0, 1]` to features :math:`(B, D)`, the rows that :mod:`pdmd.evaluation.metrics` compares:
:math:`f = \phi(x)`. For a pretrained network :math:`\phi = \text{pool} \circ \text{model} \circ
\text{preprocessing}`, with

.. math:: \text{preprocessing}(x) = (\text{crop}(\text{resize}(x)) - \mu) / \sigma

in the constants that the network was trained with. Samples of a teacher are latents: decode them
first.

References:
    Stein et al., arXiv:2306.04675 (why DINOv2 features and not Inception's); Parmar et al.,
    arXiv:2104.11222 (why resizing has to be antialiased).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from pdmd.arguments import checked
from pdmd.extras import require
from pdmd.teachers.families.encoders import check_pretrained

__all__ = [
    "FeatureExtractor",
    "FlatFeatures",
    "Preprocessing",
    "TransformersFeatures",
    "class_token",
    "load_frozen",
    "mean_token",
    "pooled",
    "summary",
]

FeatureExtractor = Callable[[Tensor], Tensor]
Pool = Callable[[Any], Tensor]

# The names torch gives to Pillow's numbered filters.
_FILTERS = {0: "nearest-exact", 2: "bilinear", 3: "bicubic"}


@dataclass(frozen=True)
class FlatFeatures:
    """Flattens samples into features, for vectors and tiny images."""

    def __call__(self, x: Tensor) -> Tensor:
        """Returns a batch of shape :math:`(B, *)` as rows of shape :math:`(B, D)`.

        Raises:
            ValueError: If the batch has only one dimension.
        """
        if x.ndim < 2:
            raise ValueError(f"expected shape (B, *), got {tuple(x.shape)}; stack the samples")
        return x.flatten(1)


@checked
@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Resizes, crops and normalises images as a pretrained network expects.

    Args:
        mean: The mean of every channel, of images in [0, 1].
        std: The standard deviation of every channel.
        size: Height and width to resize to; or the length of the shorter side, keeping the
            aspect ratio; or ``None`` not to resize.
        crop: Height and width of the central crop, or ``None``.
        mode: The filter of :func:`torch.nn.functional.interpolate`: bilinear, bicubic or
            nearest-exact. The first two are antialiased.

    Raises:
        ValueError: If the constants don't match or the filter is unknown.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int] | int | None
    crop: tuple[int, int] | None = None
    mode: str = "bilinear"

    def __post_init__(self) -> None:
        if not self.mean or len(self.mean) != len(self.std) or min(self.std) <= 0:
            raise ValueError(
                f"expected a mean and a positive std per channel, got mean={self.mean} and "
                f"std={self.std}"
            )
        if self.mode not in _FILTERS.values():
            raise ValueError(
                f"unknown filter mode={self.mode!r}; pass one of {sorted(_FILTERS.values())}"
            )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Reads an image processor's configuration, the content of preprocessor_config.json.

        Args:
            config: The configuration, as transformers writes it.

        Raises:
            ValueError: If it requires an unsupported operation, or a constant is missing.
        """

        def unsupported(key: str) -> ValueError:
            return ValueError(
                f"unsupported {key} = {config.get(key)!r} in an image processor's configuration; "
                "build Preprocessing(...) and pass it"
            )

        if config.get("do_rescale") is False:
            raise unsupported("do_rescale")
        factor = config.get("rescale_factor")
        if factor is not None and abs(255 * factor - 1) > 1e-3:
            raise unsupported("rescale_factor")
        for key in ("crop_pct", "do_pad", "rescale_offset"):
            if config.get(key):
                raise unsupported(key)
        mean, std = config.get("image_mean"), config.get("image_std")
        if config.get("do_normalize") is False:
            mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        if mean is None or std is None:
            raise unsupported("image_mean" if mean is None else "image_std")
        cropped = bool(config.get("do_center_crop"))
        size, mode = None, "bilinear"
        if config.get("do_resize") is not False:
            # Old configurations have one number: the shorter side if a crop follows.
            square = config.get("default_to_square")
            size = _size(config.get("size"), square=not cropped if square is None else square)
            if size is None:
                raise unsupported("size")
            mode = _FILTERS.get(config.get("resample", -1))
            if mode is None:
                raise unsupported("resample")
        crop = None
        if cropped:
            crop = _size(config.get("crop_size"), square=True)
            if not isinstance(crop, tuple):
                raise unsupported("crop_size")
        return cls(mean=tuple(mean), std=tuple(std), size=size, crop=crop, mode=mode)

    def __call__(self, images: Tensor) -> Tensor:
        """Returns the network's input.

        Bicubic overshoot outside [0, 1] is clamped.

        Args:
            images: Images in [0, 1], with shape :math:`(B, C, H, W)`. One channel is repeated.

        Raises:
            ValueError: If shape or values are wrong, or an image is smaller than the crop.
        """
        channels = len(self.mean)
        if images.ndim != 4 or images.shape[1] not in (1, channels) or not images.numel():
            raise ValueError(
                f"expected images of shape (B, 1 or {channels}, H, W), got {tuple(images.shape)}"
            )
        low, high = (float(v) for v in images.aminmax())
        if not (low >= -1e-6 and high <= 1 + 1e-6):
            raise ValueError(
                f"expected images in [0, 1], got values from {low:.3g} to {high:.3g}; decode the "
                "latents and clamp the pictures"
            )
        images = images.float()
        size, (height, width) = self.size, images.shape[2:]
        if isinstance(size, int):
            short = min(height, width)
            size = (size * height // short, size * width // short)
        if size is not None:
            smooth = self.mode != "nearest-exact"
            # Image libraries resize along rows, then columns, and clamp after each.
            for shape in ((height, size[1]), size):
                images = functional.interpolate(images, shape, mode=self.mode, antialias=smooth)
                images = images.clamp(0, 1)
        if self.crop is not None:
            (height, width), full = self.crop, tuple(images.shape[2:])
            top, left = (full[0] - height) // 2, (full[1] - width) // 2
            if top < 0 or left < 0:
                raise ValueError(f"can't crop {self.crop} from {full}; raise size=")
            images = images[:, :, top : top + height, left : left + width]
        mean, std = (images.new_tensor(v).view(1, -1, 1, 1) for v in (self.mean, self.std))
        return (images - mean) / std


def pooled(output: Any) -> Tensor:
    """Returns the network's ``pooler_output``."""
    value = getattr(output, "pooler_output", None)
    if value is None:
        raise ValueError(
            f"{type(output).__name__} has no pooler_output; pass pool=class_token or mean_token"
        )
    return value.flatten(1)


def class_token(output: Any) -> Tensor:
    """Returns the first token; only for networks with a class token."""
    if output.last_hidden_state.ndim != 3:
        raise ValueError(
            "class_token needs tokens of shape (B, N, D), got "
            f"{tuple(output.last_hidden_state.shape)}; pass pool=mean_token"
        )
    return output.last_hidden_state[:, 0]


def mean_token(output: Any) -> Tensor:
    """Returns the mean of all tokens (with class and register tokens), or of all pixels."""
    hidden = output.last_hidden_state
    return hidden.mean(1) if hidden.ndim == 3 else hidden.flatten(2).mean(2)


def summary(output: Any) -> Tensor:
    """Returns ``pooler_output`` where the network has one, else :func:`mean_token`."""
    value = getattr(output, "pooler_output", None)
    return mean_token(output) if value is None else value.flatten(1)


@checked
def load_frozen(name_or_folder: str | Path) -> tuple[nn.Module, dict[str, Any], list[str]]:
    """Loads a network of transformers and the configuration of its preprocessing.

    Weights are read from safetensors only, and no code of the repository is run.

    Args:
        name_or_folder: A repository of the hub, or a folder that ``save_pretrained`` wrote.

    Returns:
        The network, frozen; the content of ``preprocessor_config.json``; and the names of weights
        that the checkpoint lacks, which transformers initialises at random.

    Raises:
        ValueError: If it can't be loaded, or has no ``preprocessor_config.json``.
    """
    require("metrics", "transformers")
    from transformers import AutoModel
    from transformers.models.auto.image_processing_auto import get_image_processor_config

    name = str(name_or_folder)
    try:
        check_pretrained(name)
        model, found = AutoModel.from_pretrained(
            name, output_loading_info=True, use_safetensors=True, trust_remote_code=False
        )
        config = get_image_processor_config(name)
    except Exception as error:  # what a file states reaches a library, which raises any class
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"can't load a vision model from {name!r} ({reason}); pass a repository of the "
            "hub or a folder that save_pretrained wrote"
        ) from error
    if not config:
        raise ValueError(
            f"{name!r} has no preprocessor_config.json; write one, or pass the model with "
            "Preprocessing(...) to TransformersFeatures"
        )
    return model.eval().requires_grad_(False), config, sorted(found["missing_keys"])


@checked
class TransformersFeatures(nn.Module):
    """The features of a pretrained vision network of transformers.

    Args:
        model: The network; takes ``pixel_values``. It is frozen and put in evaluation mode.
        preprocessing: Maps images in [0, 1] to ``pixel_values``.
        pool: Maps the network's output to features of shape :math:`(B, D)`.
        batch_size: Batch size of the network.

    Raises:
        ValueError: If ``batch_size`` is not positive.
    """

    def __init__(
        self,
        model: nn.Module,
        preprocessing: Preprocessing,
        *,
        pool: Pool = pooled,
        batch_size: int = 64,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
        self.model = model.eval().requires_grad_(False)
        self.preprocessing, self.pool, self.batch_size = preprocessing, pool, batch_size

    @classmethod
    def from_pretrained(
        cls, name_or_folder: str | Path, *, pool: Pool = pooled, batch_size: int = 64
    ) -> Self:
        """Loads a network and its preprocessing from the hub or a folder.

        Of an image-text model such as CLIP, the vision network is used.

        Args:
            name_or_folder: A repository such as ``facebook/dinov2-small``, or a folder with
                ``config.json``, weights and ``preprocessor_config.json``.
            pool: Maps the network's output to features.
            batch_size: Batch size of the network.

        Raises:
            ValueError: If it can't be loaded, lacks weights, or its preprocessing can't be read.
        """
        name = str(name_or_folder)
        model, config, lacking = load_frozen(name)
        # Missing weights are initialized at random; features must not depend on them.
        if pool is summary and any("pooler" in key for key in lacking):
            pool = mean_token
        missing = [key for key in lacking if pool is pooled or "pooler" not in key]
        if missing:
            raise ValueError(
                f"{name!r} has no weights for {', '.join(missing[:3])}"
                f"{', ...' if len(missing) > 3 else ''}; if these are the pooler's, pass "
                "pool=class_token or mean_token"
            )
        vision = getattr(model, "vision_model", model)
        preprocessing = Preprocessing.from_config(config)
        return cls(vision, preprocessing, pool=pool, batch_size=batch_size)

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Tensor:
        """Returns features of images in [0, 1].

        Args:
            images: Images, with shape :math:`(B, C, H, W)`, on any device.

        Returns:
            Features, float32, with shape :math:`(B, D)`, on the images' device.

        Raises:
            ValueError: If shape or values are wrong.
        """
        like = next(self.model.parameters())
        features = []
        for part in images.split(self.batch_size):
            pixels = self.preprocessing(part.to(like.device)).to(like.dtype)
            features.append(self.pool(self.model(pixel_values=pixels)).float().to(images.device))
        return torch.cat(features)


def _size(value: Any, *, square: bool) -> tuple[int, int] | int | None:
    """Reads a size in an image processor's configuration; ``None`` if it is not supported."""
    if isinstance(value, int):
        return (value, value) if square else value
    if isinstance(value, Mapping):
        given = {key: number for key, number in value.items() if number is not None}
        if given.keys() == {"height", "width"}:
            return given["height"], given["width"]
        if given.keys() == {"shortest_edge"}:
            return given["shortest_edge"]
    return None
