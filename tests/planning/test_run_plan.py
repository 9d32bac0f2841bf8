"""Run plans: networks on the meta device, settings of the configuration."""

from importlib.util import find_spec

import pytest

from pdmd.cli.config_files import load_config
from pdmd.cli.plan import plan_run
from pdmd.planning import Precision, format_plan, measure_footprint, plan_roles
from pdmd.planning.clusters import Cluster
from pdmd.planning.run_plan import RunPlan
from pdmd.teachers.packaged.transformer import ImageTransformer
from tests.helpers.plans import small_run


def test_networks_are_measured_on_the_meta_device(monkeypatch):
    seen = []

    def watched(denoiser, *args, **settings):
        seen.append({p.device.type for p in denoiser.parameters()})
        return measure_footprint(denoiser, *args, **settings)

    monkeypatch.setattr("pdmd.planning.run_plan.measure_footprint", watched)
    plan_run(load_config("digits"))
    assert seen and all(devices == {"meta"} for devices in seen)
    seen.clear()
    plan_run(load_config("mixture"))
    assert all(devices <= {"meta"} for devices in seen)


def test_a_plan_follows_its_configuration():
    config = load_config("digits")
    config.teacher.guidance = (3.0,)
    config.train.accumulate = 2
    plan = plan_run(config, Cluster(gpus=2))
    assert [c.forward["teacher"] for c in plan.passes] == [4] * 4
    assert [c.forward["frozen"] for c in plan.passes] == [0, 4, 8, 12]
    parameters = sum(p.numel() for p in ImageTransformer().parameters())
    assert {r.generator.parameters for r in plan.roles} == {parameters}
    config.parallel.activation_checkpointing = "full"
    recomputing = plan_run(config, Cluster(gpus=2))
    assert recomputing.choices[0].memory.activations < plan.choices[0].memory.activations
    assert sum(recomputing.flops[0].values()) > sum(plan.flops[0].values())


def test_offloading_and_moments_are_those_of_the_configuration():
    config = load_config("digits")
    plain = plan_run(config, Cluster(gpus=2))
    config.parallel.offload = ("optimizers", "teacher")
    plan = plan_run(config, Cluster(gpus=2))
    assert plan.offload.optimizers and plan.offload.teacher and not plan.offload.averages
    for a, b in zip(plain.choices, plan.choices, strict=True):
        assert a.host == 0 < b.host and b.memory.items["teacher"] == 0
        assert b.traffic.host_copies > 0


@pytest.mark.skipif(find_spec("torchao") is None, reason="needs torchao")
def test_the_bits_of_moments_are_those_of_the_configuration():
    config = load_config("digits")
    plain = plan_run(config)
    config.train.adam_bits = 8
    plan = plan_run(config)
    assert plan.precision.moment_bytes < 1.1
    assert plan.totals().checkpoint < plain.totals().checkpoint


@pytest.mark.parametrize("gpus", [0, 10**6])
def test_the_number_of_gpus_is_checked(gpus):
    with pytest.raises(ValueError, match=f"expected 1 to 100,000 GPUs, got {gpus}"):
        Cluster(gpus=gpus)


@pytest.mark.parametrize("memory", [0.0, -1.0, float("nan"), float("inf")])
def test_the_memory_of_a_gpu_is_checked(memory):
    with pytest.raises(ValueError, match=f"memory.*{memory}"):
        Cluster(memory=memory)


def test_a_plan_of_several_sizes_is_the_largest_and_of_their_mean_hours():
    plans = [
        plan_roles(*small_run(side), cluster=Cluster(gpus=2), precision=Precision())
        for side in (6, 8)  # 9 tokens, which 2 ranks cannot share, and 16
    ]
    shares = (0.25, 0.75)
    plan = RunPlan.of_sizes(list(zip(shares, plans, strict=True)))
    assert {c.degrees.cp for c in plans[1].choices} == {1, 2}
    assert {c.degrees.cp for c in plan.choices} == {1}
    degrees = plan.best.degrees
    assert plan.roles is plans[1].roles
    assert plan.best.memory.total == plans[1].choice(degrees).memory.total
    alone = [p.totals(p.choice(degrees)) for p in plans]
    for name in ("flops", "seconds", "gpu_hours"):
        mean = sum(s * getattr(t, name) for s, t in zip(shares, alone, strict=True))
        assert getattr(plan.totals(), name) == pytest.approx(mean)
    assert plan.totals().flops < plans[1].totals().flops
    assert [row["tokens"] for row in plan.to_dict()["sizes"]] == [9, 16]
    assert "9 (25%), 16 (75%)" in format_plan(plan)
