"""The parts of torchtitan that are composed here; the only module that imports it.

Meshes (``ParallelDims``), process groups, determinism, activation checkpointing, containers of
optimizers and learning rates, and gradient clipping. Its trainer is not subclassed: that one
holds a single model, and a distillation step holds four kinds.
"""

import torch
import torchtitan.tools.utils as titan_tools

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
