r"""AdamW in one kernel, for parameters of one type on one device.

The update is that of :class:`torch.optim.AdamW` with ``fused=True``, bit for bit, and so is its
state. torch sorts all tensors by type and device in every step; here a step lists them and calls
the kernel.

References:
    Loshchilov and Hutter, Decoupled weight decay regularization, arXiv:1711.05101, Algorithm 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pdmd.distributed.collectives import local_part

__all__ = ["FusedAdam"]


class FusedAdam(torch.optim.Optimizer):
    """AdamW in one kernel.

    Args:
        parameters: The parameters, of one floating-point type on one device.
        lr: The learning rate.
        betas: Decay rates of the two moments.
        weight_decay: Decoupled weight decay.

    Attributes:
        found_inf: Set before a step: 1 to skip it, else 0, on the device of the parameters.

    Raises:
        ValueError: If the parameters differ in type or device.
    """

    found_inf: Tensor

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "weight_decay": weight_decay})
        kinds = {(p.dtype, p.device) for group in self.param_groups for p in group["params"]}
        if len(kinds) > 1:
            raise ValueError(
                "FusedAdam takes parameters of one type on one device, got "
                f"{', '.join(sorted(f'{dtype} on {device}' for dtype, device in kinds))}; "
                "use torch.optim.AdamW"
            )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Updates the parameters that have gradients."""
        skip: Tensor | None = self.__dict__.pop("found_inf", None)
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            states = [self._state(p) for p in parameters]
            steps = [state["step"] for state in states]
            one = steps[0].new_ones(())
            torch._foreach_add_(steps, one)  # pyright: ignore[reportPrivateImportUsage]
            torch._fused_adamw_(  # pyright: ignore[reportPrivateImportUsage]
                [local_part(p) for p in parameters],
                [local_part(p.grad) for p in parameters],
                [local_part(state["exp_avg"]) for state in states],
                [local_part(state["exp_avg_sq"]) for state in states],
                [],
                steps,
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=group["weight_decay"],
                eps=1e-8,
                amsgrad=False,
                maximize=False,
                found_inf=skip,
            )
            if skip is not None:
                torch._foreach_sub_(steps, [skip] * len(steps))  # pyright: ignore[reportPrivateImportUsage]

    def _state(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter, requires_grad=False)
            state["exp_avg_sq"] = torch.zeros_like(parameter, requires_grad=False)
        return state
