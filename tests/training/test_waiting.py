"""No wait for the device in a cycle of large families: masked texts, two networks, guidance."""

import copy

import pytest
import torch

from pdmd import AdamRecipe, Guided, PhasePlan
from pdmd.distillation.experts import OdeExpert
from pdmd.distributed.runtime import OneProcess
from pdmd.objectives import DistributionMatching, SubintervalScoreMatching
from pdmd.training.conditions import ConditionStream
from pdmd.training.expert_training import ExpertTraining
from pdmd.training.fake_scores import FakeScoreTraining
from pdmd.training.monitoring.recorder import Recorder
from pdmd.training.phase_inputs import FreshPhaseInputs, PhaseInputBuffer
from pdmd.training.rollouts import Rollouts
from pdmd.training.session import Session
from pdmd.training.trainer import PhaseTrainer
from tests.helpers import tiny_discrete
from tests.helpers.editing import edit
from tests.helpers.tiny_families import FAMILIES, family
from tests.helpers.tiny_flows import FLOWS, flow
from tests.helpers.tiny_more_flows import MORE, more
from tests.helpers.waiting import META, MetaOptimizer, Synchronizations


class Never(Recorder):
    interval = 100


@pytest.mark.parametrize(
    ("name", "scale", "phase_inputs"),
    [
        ("qwen_image", 4.0, PhaseInputBuffer),
        ("wan_2.2_a14b", (4.0, 3.0), FreshPhaseInputs),
        ("z_image", 4.0, FreshPhaseInputs),
    ],
)
def test_a_cycle_of_a_large_family_does_not_wait_for_the_device(
    name, scale, phase_inputs, monkeypatch
):
    monkeypatch.setattr(
        AdamRecipe, "build", lambda recipe, parameters, offload: MetaOptimizer(parameters)
    )
    plain = copy.deepcopy(flow(name) if name in FLOWS else family(name))
    conditions = plain.conditions(plain.prompts)
    teacher = Guided(plain, scale).to(META)
    plan = PhasePlan.from_timesteps((1.0, 0.9, 0.7, 0.0))

    def network(phase):
        return plain.trainable_part(phase.t_start, phase.t_end)

    trainer = PhaseTrainer(
        experts=[OdeExpert(network(plan[2]), plan[2])],
        earlier=[OdeExpert(network(plan[i]).requires_grad_(False), plan[i]) for i in range(2)],
        teacher=teacher.requires_grad_(False),
        fakes=[[plain.trainable_copy()]],
        generator_objective=DistributionMatching(),
        fake_objective=SubintervalScoreMatching(),
        conditions=ConditionStream(conditions.to(META)),
        updates=10,
        generator=torch.Generator().manual_seed(0),
        expert_training=ExpertTraining(ema=0.9, max_grad_norm=1.0),
        rollouts=Rollouts(batch_size=4, phase_inputs=phase_inputs()),
        fake_training=FakeScoreTraining(updates=2, max_grad_norm=1.0),
        session=Session(runtime=OneProcess(META), recorder=Never(), max_consecutive_skips=0),
    )
    trainer.cycle()  # networks copy their tables of positions once
    with Synchronizations() as syncs:
        trainer.cycle()
        trainer.cycle()
    assert not syncs.found and syncs.copies > 0


WAITING = "hunyuan_video15"  # its network orders tokens by Boolean indexing
EDIT = {"qwen_image_edit": edit}
EVERY = [*FAMILIES, *FLOWS, *tiny_discrete.FAMILIES, *(n for n in MORE if n != WAITING), *EDIT]


@pytest.mark.parametrize("name", [n for n in EVERY if n not in ("wan_2.2_a14b", "wan_i2v")])
def test_an_evaluation_does_not_wait_for_the_device(name):
    build = next(
        make
        for names, make in (
            (FAMILIES, family),
            (FLOWS, flow),
            (tiny_discrete.FAMILIES, tiny_discrete.family),
            (MORE, more),
            (EDIT, lambda _: edit()),
        )
        if name in names
    )
    plain = copy.deepcopy(build(name))
    conditions = plain.conditions(list(plain.prompts)[:3])
    teacher = plain if conditions is None else Guided(plain, 3.0)
    teacher = teacher.to(META)
    condition = None
    if conditions is not None:
        conditions, rows = conditions.to(META), torch.tensor([0, 1, 1])
        known = not isinstance(getattr(conditions, "device", None), torch.device)
        condition = conditions[rows if known else rows.to(META)]
    x = torch.randn(3, *teacher.latent_shape, device=META)
    t = torch.full((3,), 0.5, dtype=torch.float64, device=META)
    teacher.network(x, t, condition)  # copies tables of positions once
    with Synchronizations() as syncs:
        teacher.network(x, t, condition)
    assert not syncs.found
