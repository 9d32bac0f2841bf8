"""Planning: memory, FLOPs and traffic of a distillation, without running it.

Networks are built on the meta device, where tensors have shapes and no contents, and their
computation is recorded there. The rest is closed-form arithmetic.
"""

from pdmd.distributed.degrees import Degrees
from pdmd.distributed.offload import Offload
from pdmd.planning.clusters import Cluster
from pdmd.planning.duration import CycleSeconds, seconds_of
from pdmd.planning.evaluations import CyclePasses, Workload, cycle_passes
from pdmd.planning.footprint import Footprint, measure_footprint
from pdmd.planning.memory import PhaseFootprints, Precision, RankMemory, memory_of
from pdmd.planning.run_plan import RunPlan, measure_roles, plan_roles
from pdmd.planning.search import Choice, search_degrees
from pdmd.planning.tables import format_plan
from pdmd.planning.totals import RunTotals, checkpoint_bytes, run_totals
from pdmd.planning.traffic import Traffic, flops_of, traffic_of

__all__ = [
    "seconds_of",
    "run_totals",
    "checkpoint_bytes",
    "RunTotals",
    "Offload",
    "CycleSeconds",
    "Cluster",
    "CyclePasses",
    "Choice",
    "Degrees",
    "Footprint",
    "Precision",
    "RankMemory",
    "PhaseFootprints",
    "RunPlan",
    "Traffic",
    "Workload",
    "cycle_passes",
    "flops_of",
    "measure_footprint",
    "measure_roles",
    "memory_of",
    "plan_roles",
    "search_degrees",
    "format_plan",
    "traffic_of",
]
