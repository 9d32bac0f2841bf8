"""The parts of torchtitan in use; the only module that imports it.

Meshes (``ParallelDims``), process groups, determinism, activation checkpointing, containers of
optimizers and learning rates, and gradient clipping. torchtitan's trainer is not used, because it
has a single model, and a distillation step has four roles.
"""

import torch

from pdmd.extras import require

try:
    import torchtitan.tools.utils as titan_tools
except ModuleNotFoundError:
    require("train", "torchtitan")
    raise

if not torch.accelerator.is_available():  # torchtitan assumes "cuda" otherwise
    titan_tools.device_type, titan_tools.device_module = "cpu", torch.cpu

from torchtitan.components.optimizer import (
    LRSchedulersContainer,
    OptimizersContainer,
    ParamGroupConfig,
)
from torchtitan.config import CommConfig, DebugConfig
from torchtitan.distributed import ParallelDims
from torchtitan.distributed import utils as titan_utils
from torchtitan.distributed.activation_checkpoint import FullAC, SelectiveAC
from torchtitan.tools.logging import logger as titan_logger

__all__ = [
    "CommConfig",
    "DebugConfig",
    "FullAC",
    "LRSchedulersContainer",
    "OptimizersContainer",
    "ParallelDims",
    "ParamGroupConfig",
    "SelectiveAC",
    "titan_logger",
    "titan_tools",
    "titan_utils",
]
