"""Planning: what a run costs and where it fits, before anything is rented.

Networks are built on the meta device, where tensors have shapes and no contents, and their
computation is recorded there. Everything else is arithmetic.
"""

from pdmd.distributed.degrees import Degrees
from pdmd.planning.evaluations import Calls, Work, calls
from pdmd.planning.footprint import Footprint, measure
from pdmd.planning.memory import Precision, RankMemory, Roles, memory_of
from pdmd.planning.run_plan import RunPlan, measure_roles, plan_roles
from pdmd.planning.search import Choice, search
from pdmd.planning.tables import tables
from pdmd.planning.traffic import Traffic, flops_of, traffic_of

__all__ = [
    "Calls",
    "Choice",
    "Degrees",
    "Footprint",
    "Precision",
    "RankMemory",
    "Roles",
    "RunPlan",
    "Traffic",
    "Work",
    "calls",
    "flops_of",
    "measure",
    "measure_roles",
    "memory_of",
    "plan_roles",
    "search",
    "tables",
    "traffic_of",
]
