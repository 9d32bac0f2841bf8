"""How a network is split over ranks: tensor and context parallelism by a plan that it states."""

from pdmd.parallel.checks import check
from pdmd.parallel.collectives import Ranks, enter, exchange, gather, reduce, scale_gradient
from pdmd.parallel.context import context_parallelize
from pdmd.parallel.plans import (
    ContextPlan,
    Input,
    Output,
    ParallelPlan,
    TensorPlan,
    parallel_plans,
    plans_of,
    units_of,
)
from pdmd.parallel.styles import (
    Columnwise,
    NormAcrossHeads,
    PackedColumnwise,
    PackedRowwise,
    PerHead,
    Rowwise,
    Style,
)
from pdmd.parallel.tensor import permutations, tensor_parallelize
from pdmd.parallel.views import replicate

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
