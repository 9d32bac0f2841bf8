r"""Critics: networks that tell real from student states at a noise level.

A critic is a function :math:`h(x_t, t, c)`, read as a logit: at the optimum of
:mod:`~pdmd.objectives.adversarial` it is :math:`\log p^{real}_t(x_t | c) - \log p^{fake}_t(x_t |
c)`, whose gradient is a difference of scores. A denoiser's features know noisy samples already,
so a small head on them is enough.

References:
    Yin et al., DMD2, arXiv:2405.14867, Section 4.3 (a head on the fake score's features).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from pdmd.diffusion.denoisers import Denoiser
from pdmd.distillation.phases import Phase
from pdmd.objectives.base import Models
from pdmd.objectives.real_samples import PerPhase
from pdmd.registry import Registry
from pdmd.typing import Condition, Latents

__all__ = ["Critic", "CriticFactory", "Critics", "FeatureCritic", "MlpCritic", "critics"]


class Critic(nn.Module, ABC):
    """A network with one logit for each sample, high for real ones."""

    @abstractmethod
    def forward(self, x_t: Latents, t: Tensor, condition: Condition = None) -> Tensor:
        """Evaluates the logits.

        Args:
            x_t: Noisy latents, with shape :math:`(B, *)`.
            t: Times in [0, 1], float64, with shape :math:`(B)`.
            condition: A TensorDict with batch size :math:`(B)`, or ``None``.

        Returns:
            Logits, with shape :math:`(B)`.
        """


class MlpCritic(Critic):
    """A multilayer perceptron over vectors, for teachers that are no networks.

    Args:
        dim: Dimensions of a sample, all together.
        classes: Number of classes; 0 for none. Conditions carry ``label`` of shape :math:`(B)`,
            where the value ``classes`` means no label.
        width: Hidden width.
        depth: Number of hidden layers.
        frequencies: Number of time frequencies.

    Raises:
        ValueError: If a size is out of its range.
    """

    def __init__(
        self, dim: int, classes: int = 0, width: int = 64, depth: int = 2, frequencies: int = 4
    ) -> None:
        super().__init__()
        for name, value in (("dim", dim), ("width", width), ("depth", depth)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.classes = classes
        self.frequencies: Tensor
        self.register_buffer(
            "frequencies", 2.0 ** torch.arange(frequencies) * math.pi / 2, persistent=False
        )
        self.label = nn.Embedding(classes + 1, width) if classes else None
        inputs = dim + 1 + 2 * frequencies + (width if classes else 0)
        layers: list[nn.Module] = []
        for i in range(depth):
            layers += [nn.Linear(inputs if i == 0 else width, width), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(width, 1))

    def forward(self, x_t: Latents, t: Tensor, condition: Condition = None) -> Tensor:
        x = x_t.flatten(1)
        time = t[:, None].to(x)
        phase = time * self.frequencies.to(x.dtype)
        features = [x, time, phase.sin(), phase.cos()]
        if self.label is not None:
            if condition is None:
                label = torch.full((len(x),), self.classes, device=x.device)
            else:
                label = condition["label"]
            features.append(self.label(label))
        return self.layers(torch.cat(features, 1))[:, 0]


class FeatureCritic(Critic):
    """A small head on features of a frozen denoiser.

    The denoiser runs as it is, and outputs of some of its modules are caught on the way. Their
    tokens or pixels are averaged, the pooled features concatenated, normalised and judged by a
    perceptron. Gradients reach the head and ``x_t``; the denoiser's parameters get none, and it
    is not part of the critic's own state. It may be the teacher or the fake score in training.

    Args:
        denoiser: The denoiser. Guidance doubles its batch, so take the denoiser within.
        example: A condition of any batch size, for the one call that measures the features;
            ``None`` for a denoiser without.
        layers: Names of the denoiser's modules, as in ``"blocks.2"``. By default the last of its
            longest ``ModuleList``; without one, the last but one of its longest ``Sequential``
            (the last is as a rule the output).
        width: The head's hidden width.

    Raises:
        ValueError: If a layer does not exist, or there is no default; if a layer does not run, or
            its output is not a tensor with one row for each sample.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        example: Condition = None,
        layers: Sequence[str] | None = None,
        width: int = 64,
    ) -> None:
        super().__init__()
        # In a tuple, out of nn.Module's sight: not to be trained, saved or moved with the head.
        self._denoiser = (denoiser,)
        self.layers = tuple(layers) if layers is not None else (_default_layer(denoiser),)
        modules = dict(denoiser.named_modules())
        for name in self.layers:
            if name not in modules:
                near = [n for n in modules if n and n.endswith(name.rsplit(".", 1)[-1])][:5]
                raise ValueError(
                    f"{type(denoiser).__name__} has no module {name!r}; name modules as "
                    f"named_modules() does, for example {', '.join(near or list(modules)[1:6])}"
                )
        tensors = chain(denoiser.parameters(), denoiser.buffers())
        device = next((tensor.device for tensor in tensors), torch.device("cpu"))
        rows = 1 if example is None else int(example.batch_size[0])
        x = torch.zeros(rows, *denoiser.latent_shape, device=device)
        low, high = denoiser.time_range
        t = torch.full((rows,), (low + high) / 2, dtype=torch.float64, device=device)
        with torch.no_grad():
            channels = self.features(x, t, example).shape[1]
        self.head = nn.Sequential(
            nn.LayerNorm(channels), nn.Linear(channels, width), nn.SiLU(), nn.Linear(width, 1)
        )

    def forward(self, x_t: Latents, t: Tensor, condition: Condition = None) -> Tensor:
        features = self.features(x_t, t, condition)
        return self.head(features.to(next(self.head.parameters()).dtype))[:, 0]

    def features(self, x_t: Latents, t: Tensor, condition: Condition) -> Tensor:
        """Returns the pooled features, with shape :math:`(B, C)`."""
        (denoiser,) = self._denoiser
        caught: dict[str, Any] = {}

        def catch(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                caught[name] = output[0] if isinstance(output, (tuple, list)) else output

            return hook

        modules = dict(denoiser.named_modules())
        handles = [modules[name].register_forward_hook(catch(name)) for name in self.layers]
        try:
            with _frozen(denoiser):
                denoiser(x_t, t, condition)
        finally:
            for handle in handles:
                handle.remove()
        return torch.cat([_pool(caught, name, len(x_t)) for name in self.layers], 1)


CriticFactory: TypeAlias = Callable[[Models, Phase, Condition], Critic]
"""Makes a phase's critic from the phase's models, the phase and an example condition of 2 rows.

For example ``lambda models, phase, example: FeatureCritic(models.real, example)``.
"""


class Critics:
    """One critic for each phase, shared by the two sides of the game.

    Args:
        factory: Makes a phase's critic.
    """

    def __init__(self, factory: CriticFactory) -> None:
        self.factory = factory
        self._critics: PerPhase[Critic] = PerPhase(
            "critic",
            "let the fake score's objective include DiscriminatorLoss in every phase in which the "
            "generator's includes Adversarial, with the same Critics",
        )

    def make(
        self, models: Models, phase: Phase, example: Condition, generator: torch.Generator
    ) -> None:
        """Makes a phase's critic, its parameters drawn from ``generator`` alone."""
        seed = int(torch.randint(2**62, (), generator=generator))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            critic = self.factory(models, phase, example)
        self._critics.put(phase, critic.to(models.fake.device))

    def of(self, phase: Phase) -> Critic:
        """Returns a phase's critic.

        Raises:
            ValueError: If the phase has none.
        """
        return self._critics.use(phase)

    def __repr__(self) -> str:
        return f"Critics({getattr(self.factory, '__qualname__', self.factory)})"


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    trainable = [p for p in module.parameters() if p.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


def _default_layer(denoiser: Denoiser) -> str:
    for kind, back in ((nn.ModuleList, 1), (nn.Sequential, 2)):
        found = [
            (len(module), name)
            for name, module in denoiser.named_modules()
            if isinstance(module, kind) and len(module) >= back
        ]
        if found:
            length, name = max(found, key=lambda item: item[0])
            return f"{name}.{length - back}"
    raise ValueError(
        f"{type(denoiser).__name__} has no list of layers to take features from; name some with "
        "layers=, or use MlpCritic"
    )


def _pool(caught: dict[str, Any], name: str, batch: int) -> Tensor:
    if name not in caught:
        raise ValueError(f"the module {name!r} does not run in a forward; name another layer")
    value = caught[name]
    if not isinstance(value, Tensor) or value.ndim < 2 or len(value) != batch:
        what = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"the module {name!r} returned {what} for {batch} samples; name a layer with one row "
            "for each sample, and take features of the denoiser within a guided one"
        )
    if value.ndim == 2:
        return value
    if value.ndim == 3:  # tokens: (B, N, C)
        return value.mean(1)
    return value.flatten(2).mean(2)  # a feature map: (B, C, ...)


critics: Registry[type[Critic]] = Registry(
    "critic",
    {
        "features": "pdmd.objectives.critics:FeatureCritic",
        "mlp": "pdmd.objectives.critics:MlpCritic",
    },
)
