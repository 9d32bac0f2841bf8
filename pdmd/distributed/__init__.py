"""Distributed training: tensor and context parallelism, by the plan that a network states."""

from pdmd.distributed.checks import check
from pdmd.distributed.collectives import Ranks, enter, exchange, gather, reduce, scale_gradient
from pdmd.distributed.context_parallel import context_parallelize
from pdmd.distributed.parameter_views import replicate
from pdmd.distributed.plans import (
    ContextPlan,
    Input,
    Output,
    ParallelPlan,
    TensorPlan,
    parallel_plans,
    plans_of,
    units_of,
)
from pdmd.distributed.styles import (
    Columnwise,
    NormAcrossHeads,
    PackedColumnwise,
    PackedRowwise,
    PerHead,
    Rowwise,
    Style,
)
from pdmd.distributed.tensor_parallel import permutations, tensor_parallelize

__all__ = [
    "Columnwise",
    "ContextPlan",
    "Input",
    "NormAcrossHeads",
    "Output",
    "PackedColumnwise",
    "PackedRowwise",
    "ParallelPlan",
    "PerHead",
    "Ranks",
    "Rowwise",
    "Style",
    "TensorPlan",
    "check",
    "context_parallelize",
    "enter",
    "exchange",
    "gather",
    "parallel_plans",
    "permutations",
    "plans_of",
    "reduce",
    "replicate",
    "scale_gradient",
    "tensor_parallelize",
    "units_of",
]
