r"""Critics: networks that discriminate real from student samples at any noise level.

A critic is a function :math:`h(x_t, t, c)` that returns a logit. At the optimum of
:mod:`~pdmd.objectives.adversarial` it is :math:`\log p^{real}_t(x_t | c) - \log p^{fake}_t(x_t |
c)`, whose gradient is a score difference. A denoiser's features represent noisy samples already,
so that a small head on them suffices.

References:
    Yin et al., DMD2, arXiv:2405.14867, Section 4.3 (a head on the fake score's features).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from pdmd.arguments import at_least, checked
from pdmd.diffusion.denoisers import Denoiser
from pdmd.diffusion.routers import RoutedDenoiser
from pdmd.diffusion.time_intervals import evaluating
from pdmd.distillation.phases import Phase
from pdmd.objectives.base import Models
from pdmd.objectives.real_samples import PerPhase
from pdmd.registry import Registry
from pdmd.typing import Condition, Latents

__all__ = ["Critic", "CriticFactory", "Critics", "FeatureCritic", "MlpCritic", "critics"]


class Critic(nn.Module, ABC):
    """A network that returns one logit per sample, high for real samples."""

    def __call__(self, x_t: Latents, t: Tensor, condition: Condition = None) -> Tensor:
        """Calls :meth:`forward`, with the interval of the times known to routed denoisers."""
        with evaluating(t):
            return super().__call__(x_t, t, condition)

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


@checked
class MlpCritic(Critic):
    """A multilayer perceptron on flattened samples, for teachers without features.

    Args:
        dim: Number of dimensions of a sample.
        classes: Number of classes, 0 for none. Conditions have a field ``label`` of shape
            :math:`(B)`, whose value ``classes`` is unconditional.
        width: Hidden width.
        depth: Number of hidden layers.
        frequencies: Number of time frequencies.

    Raises:
        ValueError: If ``dim``, ``width`` or ``depth`` is below 1, or another number negative.
    """

    def __init__(
        self, dim: int, classes: int = 0, width: int = 64, depth: int = 2, frequencies: int = 4
    ) -> None:
        at_least(0, classes=classes, frequencies=frequencies)
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
        return self.layers(torch.cat(features, 1)).sum(1)  # of one: fully_shard warns of views


@checked
class FeatureCritic(Critic):
    """A small head on features of a frozen denoiser.

    Forward hooks capture outputs of some of the denoiser's modules. They are averaged over tokens
    or pixels, concatenated, normalised, and mapped to a logit by a multilayer perceptron.
    Gradients reach the head and ``x_t``, not the denoiser's parameters, and the denoiser is not
    part of the critic's state. It may be the teacher or the fake score in training. Of several
    networks behind a router, features are those of the network that is evaluated; name the layer
    in one of them.

    Args:
        denoiser: The denoiser. Of a guided denoiser, which doubles its batch, pass the one it
            wraps.
        example: A condition of any batch size, for one call that determines the number of
            features; ``None`` for an unconditional denoiser.
        layers: Names of the denoiser's modules, as in ``"blocks.2"``. By default the last module
            of its longest ``ModuleList``; without one, the last but one of its longest
            ``Sequential``, whose last is usually the output layer.
        width: The head's hidden width.

    Raises:
        ValueError: If a layer does not exist, there is no default, a layer is not evaluated, or
            its output is not a tensor with one row per sample.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        example: Condition = None,
        layers: Sequence[str] | None = None,
        width: int = 64,
    ) -> None:
        super().__init__()
        # In a tuple, so that it is no submodule: not trained, saved or moved with the head.
        self._denoiser = (denoiser,)
        self.layers = tuple(layers) if layers is not None else (_default_layer(denoiser),)
        modules = dict(denoiser.named_modules())
        for name in self.layers:
            if name not in modules:
                near = [n for n in modules if n and n.endswith(name.rsplit(".", 1)[-1])][:5]
                raise ValueError(
                    f"{type(denoiser).__name__} has no module {name!r}; use the names of "
                    f"named_modules(), for example {', '.join(near or list(modules)[1:6])}"
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
        return self.head(features.to(next(self.head.parameters()).dtype)).sum(1)

    def features(self, x_t: Latents, t: Tensor, condition: Condition) -> Tensor:
        """Returns the pooled features, with shape :math:`(B, C)`."""
        (denoiser,) = self._denoiser
        captured: dict[str, Any] = {}

        def capture(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                captured[name] = output[0] if isinstance(output, (tuple, list)) else output

            return hook

        modules = dict(denoiser.named_modules())
        handles = [
            modules[counterpart].register_forward_hook(capture(name))
            for name in self.layers
            for counterpart in _counterparts(modules, name)
        ]
        try:
            with _frozen(denoiser):
                denoiser(x_t, t, condition)
        finally:
            for handle in handles:
                handle.remove()
        return torch.cat([_pool(captured, name, len(x_t)) for name in self.layers], 1)


CriticFactory: TypeAlias = Callable[[Models, Phase, Condition], Critic]
"""Creates a phase's critic from the models, the phase and an example condition of batch size 2.

For example ``lambda models, phase, example: FeatureCritic(models.real, example)``.
"""


@checked
class Critics:
    """One critic per phase, shared by the losses of generator and critics.

    Args:
        factory: Creates a phase's critic.
    """

    def __init__(self, factory: CriticFactory) -> None:
        self.factory = factory
        self._critics: PerPhase[Critic] = PerPhase(
            "critic",
            "add DiscriminatorLoss to the fake score's objective in every phase in which the "
            "generator's has Adversarial, with the same Critics",
        )

    def create(
        self, models: Models, phase: Phase, example: Condition, generator: torch.Generator
    ) -> None:
        """Creates a phase's critic, with parameters drawn from ``generator`` alone.

        Args:
            models: The denoisers of the phase.
            phase: The phase.
            example: A condition of batch size 2, or ``None``.
            generator: The source of randomness.
        """
        seed = int(torch.randint(2**62, (), generator=generator))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            critic = self.factory(models, phase, example)
        self._critics.set(phase, critic.to(models.fake.device))

    def clear(self) -> None:
        """Removes all critics, so that those of an earlier distillation are not used again."""
        self._critics.clear()

    def of(self, phase: Phase) -> Critic:
        """Returns a phase's critic.

        Raises:
            ValueError: If none was created.
        """
        return self._critics.get(phase)

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
    routed = [m.denoisers for m in denoiser.modules() if isinstance(m, RoutedDenoiser)]
    for kind, back in ((nn.ModuleList, 1), (nn.Sequential, 2)):
        found = [
            (len(module), name)
            for name, module in denoiser.named_modules()
            if isinstance(module, kind) and len(module) >= back and module not in routed
        ]
        if found:
            length, name = max(found, key=lambda item: item[0])
            return f"{name}.{length - back}"
    raise ValueError(
        f"{type(denoiser).__name__} has no ModuleList or Sequential to take features from; pass "
        "layers=[...], or use MlpCritic"
    )


def _counterparts(modules: Mapping[str, nn.Module], name: str) -> list[str]:
    """Returns the names of a module in every network behind its router; of itself otherwise."""
    for path, module in modules.items():
        prefix = f"{path}.denoisers." if path else "denoisers."
        if isinstance(module, RoutedDenoiser) and name.startswith(prefix):
            _, _, rest = name[len(prefix) :].partition(".")
            names = (f"{prefix}{i}.{rest}" for i in range(len(module.denoisers)))
            return [other for other in names if other in modules]
    return [name]


def _pool(captured: dict[str, Any], name: str, batch: int) -> Tensor:
    if name not in captured:
        raise ValueError(f"the module {name!r} is not evaluated; choose another layer")
    value = captured[name]
    if not isinstance(value, Tensor) or value.ndim < 2 or len(value) != batch:
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"the module {name!r} returned {shape} for {batch} samples; choose a layer with one "
            "row per sample, and of a guided denoiser pass the one it wraps"
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
