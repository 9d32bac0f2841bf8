"""Types by role: what computes and is stored in which, in one process and on two ranks."""

import signal

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.fsdp import FSDPModule

from pdmd import AdamRecipe, PhasePlan, Student
from pdmd.cli.config import DistillConfig
from pdmd.cli.main import main
from pdmd.distillation.adapters import LowRank, adapt
from pdmd.distillation.experts import StochasticTruncation
from pdmd.distillation.initializers import FromTeacher
from pdmd.distributed.degrees import Degrees
from pdmd.distributed.offload import Offload
from pdmd.distributed.role_types import RoleTypes
from pdmd.distributed.runtime import OneProcess
from pdmd.planning import Workload, measure_roles
from pdmd.planning.memory import Precision, memory_of
from pdmd.training.ema import Ema
from pdmd.training.monitoring.recorder import RunRecorder
from pdmd.training.trainer import PhaseTrainer
from tests.distributed.ranks import run_ranks
from tests.distributed.test_offload import offloaded
from tests.distributed.test_titan import digits
from tests.helpers.distilling import distill
from tests.helpers.tiny_runs import bits
from tests.helpers.tiny_runs import distill as run
from tests.helpers.trainings import SMALL, Images

HALF, FULL = torch.bfloat16, torch.float32
MIXED = RoleTypes(teacher=HALF, fake=HALF)
NARROW = RoleTypes(teacher=HALF, generator=HALF, average=HALF)


def test_types_that_make_no_sense_are_errors():
    with pytest.raises(ValueError, match=r"the type of the fake is float32 or bfloat16, got torc"):
        RoleTypes(fake=torch.float16)
    with pytest.raises(ValueError, match=r"averages in torch.bfloat16 would lose what experts"):
        RoleTypes(average=HALF)
    with pytest.raises(ValueError, match=r"a weight average of decay 0.9 in torch.bfloat16 loses"):
        NARROW.check(ema=0.9, adapted=())
    NARROW.check(ema=0, adapted=("generator",))
    with pytest.raises(ValueError, match="the fake is an adapter over the teacher's network"):
        NARROW.check(ema=0, adapted=("generator", "fake"))


def test_a_configuration_has_types_by_role():
    config = DistillConfig()
    config.parallel.precision = "bfloat16"
    assert config.train.types.build("bfloat16") == RoleTypes.alike(HALF)
    config.train.types.fake = "float32"
    config.check()
    assert config.build_runtime().types == RoleTypes(teacher=HALF, generator=HALF, fake=FULL)
    config.train.types.average = "bfloat16"
    with pytest.raises(ValueError, match=r"a weight average of decay 0.99 in torch.bfloat16"):
        config.check()
    config.train.types.generator = "float32"
    with pytest.raises(ValueError, match=r"train\.types: averages in torch.bfloat16"):
        config.check()


def test_an_average_of_decay_0_is_a_copy_in_its_own_type():
    network = torch.nn.Linear(3, 3)
    average = Ema(network, 0.0)
    average.network.to(HALF)
    average.update(network, 0)
    assert torch.equal(average.network.weight, network.weight.to(HALF))


def trained(types, runtime, **settings):
    """Distills, and says in which types each role computes and is stored."""
    seen = {}
    cycle = PhaseTrainer.cycle

    def look(self):
        scalars = cycle(self)
        networks = {
            "teacher": self.teacher,
            "generator": self.networks["generator"],
            "fake": self.networks["fake"],
            "average": self.ema.network,
        }
        for role, network in networks.items():
            gathered = {
                module._get_fsdp_state()._mp_policy.param_dtype or FULL
                for module in network.modules()
                if isinstance(module, FSDPModule)
            }
            stored = {p.dtype for p in network.parameters()}
            computing = {m.precision for m in network.modules() if hasattr(m, "precision")}
            seen[role] = stored, computing, gathered
        return scalars

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PhaseTrainer, "cycle", look)
        student = distill(
            digits(),
            PhasePlan.uniform(2),
            updates=2,
            fake_updates=1,
            batch_size=8,
            optimizer=AdamRecipe(lr=1e-3),
            runtime=runtime(types=types),
            **settings,
        )
    return student.state_dict(), seen


def test_types_of_one_process():
    usual, _ = trained(None, OneProcess)
    same, _ = trained(RoleTypes(), OneProcess)
    assert all(torch.equal(usual[name], same[name]) for name in usual)
    weights, seen = trained(MIXED, OneProcess)
    assert all(value.dtype == FULL for value in weights.values())
    assert {role: types[1] for role, types in seen.items()} == {
        "teacher": {HALF},
        "generator": {FULL},
        "fake": {HALF},
        "average": {FULL},
    }
    weights, seen = trained(NARROW, OneProcess, ema=0)
    assert seen["average"][0] == {HALF} and seen["generator"][0] == {FULL}
    assert {value.dtype for value in weights.values() if value.is_floating_point()} == {HALF}


def ranks():
    from pdmd.distributed.titan import TitanRuntime

    return trained(MIXED, TitanRuntime)[1], trained(NARROW, TitanRuntime, ema=0)[1]


@pytest.mark.distributed
def test_two_ranks_store_and_gather_each_role_in_its_type():
    mixed, narrow = run_ranks(ranks, 2)[0]
    assert mixed == {
        "teacher": ({HALF}, {HALF}, {HALF}),
        "generator": ({FULL}, {FULL}, {FULL}),
        "fake": ({FULL}, {HALF}, {HALF}),
        "average": ({FULL}, {FULL}, {FULL}),
    }
    assert narrow["average"] == ({HALF}, {HALF}, {HALF})
    assert narrow["generator"] == ({FULL}, {HALF}, {HALF})
    assert narrow["fake"] == ({FULL}, {FULL}, {FULL})


def offloaded_bases():
    """Places an adapted teacher, and adapters whose base nothing else has placed."""
    from pdmd.distributed.titan import TitanRuntime

    adapted = adapt(digits().part(1, 0), LowRank(rank=2), seed=0)
    placement = TitanRuntime(offload=Offload(teacher=True)).placement
    found = []
    for placed in (placement.frozen(adapted, offload=True), placement.trained(adapted)):
        bases = [m.base for m in placed.modules() if hasattr(m, "base")]
        found.append(set().union(*map(offloaded, bases)))
    return found


@pytest.mark.distributed
def test_a_base_that_no_role_shares_is_offloaded_too():
    assert run_ranks(offloaded_bases, 1)[0] == [{True}, {True}]


def test_the_plan_counts_each_role_in_its_type():
    teacher = Images(**SMALL)
    plan = PhasePlan.uniform(2)
    work = Workload(plan=plan, truncation=StochasticTruncation(), batch_size=4, fake_updates=1)

    condition = teacher.encode([1])
    roles = measure_roles(teacher, FromTeacher(), condition, work, precision=Precision())[1]

    def planned(**types):
        return memory_of(roles, work, Degrees(dp_shard=2), Precision(**types))

    full, half = planned(), planned(compute=HALF, frozen=HALF, generator=FULL, fake=FULL)
    assert half.teacher == pytest.approx(full.teacher / 2, rel=1e-2)  # buffers
    assert half.generator == full.generator and half.average == full.average
    narrow = planned(compute=HALF, frozen=HALF, average=HALF)
    assert narrow.average == pytest.approx(full.average / 2, rel=1e-2)
    assert narrow.frozen == pytest.approx(full.frozen / 2, rel=1e-2)
    assert narrow.fake == pytest.approx(full.fake, rel=1e-2)


def test_a_run_with_narrow_averages_resumes_exactly(tmp_path, monkeypatch):
    words = ["--parallel.precision=bfloat16", "--train.types.average=bfloat16", "--train.ema=0"]
    words += ["--train.updates=3", "--train.types.fake=float32", "--evaluate.at-end=never"]
    assert run(tmp_path / "a", *words) == 0
    done = []

    def on_update(self, update):
        done.append(update)
        if len(done) == 4:  # the first update of the second phase
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(RunRecorder, "on_update", on_update)
        assert run(tmp_path / "b", *words) == 130
    assert main(["distill", "--resume", str(tmp_path / "b"), "--no-progress"]) == 0
    student = Student.load(tmp_path / "a" / "student")
    file = load_file(tmp_path / "a" / "student" / "expert_1.safetensors")
    assert {value.dtype for value in file.values()} == {HALF}
    assert sum(p.numel() for p in student.parameters())
    assert torch.equal(bits(tmp_path / "a"), bits(tmp_path / "b"))
