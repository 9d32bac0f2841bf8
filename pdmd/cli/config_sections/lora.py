"""The section ``[lora]``: low-rank adapters in place of whole networks."""

from __future__ import annotations

from dataclasses import dataclass

from pdmd.diffusion.denoisers import Denoiser
from pdmd.distillation.adapters import LowRank, layers_of

__all__ = ["LoraConfig"]


@dataclass(kw_only=True)
class LoraConfig:
    """Low-rank adapters over the teacher's frozen weights, in place of whole networks."""

    rank: int = 0
    """Rank of the experts' adapters; 0 trains full weights. The paper uses 64."""
    alpha: float = 8.0
    """The experts' weight update is multiplied by alpha / rank."""
    fake_rank: int = 0
    """Rank of the fake score's adapter; 0 trains full weights, as in the paper."""
    fake_alpha: float = 8.0
    """The fake score's weight update is multiplied by fake_alpha / fake_rank."""
    targets: tuple[str, ...] = ()
    """Linear layers to adapt, for example to_q to_v; those in the network's blocks by default."""

    def build(self) -> tuple[LowRank | None, LowRank | None]:
        """Builds the experts' and the fake score's adapters, ``None`` for full weights.

        Raises:
            ValueError: If a value is out of its range, or configures an adapter of rank 0.
        """
        unset = LoraConfig()
        for name, rank, ranks in (
            ("alpha", "rank", self.rank),
            ("fake_alpha", "fake_rank", self.fake_rank),
            ("targets", "rank", self.rank or self.fake_rank),
        ):
            if not ranks and getattr(self, name) != getattr(unset, name):
                raise ValueError(
                    f"lora.{name} = {getattr(self, name)!r} has no effect with lora.{rank} = 0, "
                    f"which trains full weights; set lora.{rank}, or remove lora.{name}"
                )
        pairs = ((self.rank, self.alpha), (self.fake_rank, self.fake_alpha))
        generator, fake = (
            LowRank(rank=rank, alpha=alpha, targets=self.targets) if rank else None
            for rank, alpha in pairs
        )
        return generator, fake

    def check_layers(self, network: Denoiser) -> None:
        """Checks that the targets are linear layers of a network.

        Raises:
            ValueError: If a target matches none.
        """
        for spec in self.build():
            if spec is not None:
                layers_of(network, spec.targets)
