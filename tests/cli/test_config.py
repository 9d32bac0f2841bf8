"""The configuration: its checks, and the objects that it builds."""

import json

import pytest
import torch

from pdmd import FromDenoiser, FromPrevious, FromTeacher, Joint, LowRankRoles, PerStep, PhasePlan
from pdmd.cli.config import DistillConfig, NetworkConfig, TrainConfig
from pdmd.cli.runs import Run
from pdmd.distillation.adapters import LowRank
from pdmd.teachers import MixtureTeacher, MlpDenoiser
from pdmd.teachers.base import networks
from pdmd.training.fake_scores import OneFakeScorePerExitStep
from tests.helpers.tiny_runs import bits, distill

PLAN = PhasePlan.uniform(2)


@pytest.mark.parametrize(
    ("section", "key", "value", "named"),
    [
        ("train", "updates", 0, "train.updates is from 1 to 1,000,000,000, got 0"),
        ("train", "ema", 1.0, "train.ema is in [0, 1), got 1.0"),
        ("train", "max_grad_norm", 0.0, "train.max_grad_norm must be positive, got 0.0"),
        ("train", "seed", -1, "train.seed is in [0, 2^63), got -1"),
        ("train", "seed", 10**60, "(61 characters)"),
        ("train", "update_shares", (1.0,), "has 1 numbers for 4 phases; give one per phase"),
        ("train", "initializer", "cat", "unknown initializer 'cat'"),
        ("train", "expert", "cat", "unknown expert 'cat'"),
        ("evaluate", "samples", 5, "evaluate.samples is from 100"),
        ("evaluate", "seed", -1, "evaluate.seed is from 0"),
        ("network", "name", "cat", "unknown network 'cat'"),
        ("network", "arguments", {"widht": 3}, "unknown key 'network.arguments.widht': mlp takes"),
        ("network", "arguments", {"dim": 3}, "network.arguments.dim follows from the teacher"),
        ("plan", "steps", (), "plan.steps is empty"),
        ("teacher", "guidance", (), "teacher.guidance is empty"),
        ("objective", "generator", ({"name": "repulsion", "phases": [5]},), "has 4"),
        (
            "objective",
            "generator",
            ({"name": "distribution_matching", "phases": [1, 2, 4]},),
            "objective.generator has no term in phase 3",
        ),
        (
            "objective",
            "generator",
            ({"name": "velocity_regression", "anchor": 0.8},),
            "the anchor 0.8 is not within phase 2",
        ),
    ],
)
def test_values_out_of_range_are_named(section, key, value, named):
    config = DistillConfig()
    setattr(getattr(config, section), key, value)
    with pytest.raises(ValueError) as caught:
        config.check()
    assert named in str(caught.value)


def test_a_ratio_from_a_critic_needs_progressive_phases():
    config = DistillConfig()
    config.objective.generator = ({"name": "f_divergence", "ratio": "critic"},)
    config.objective.fake = ("score_matching", "discriminator")
    config.check()
    config.train.curriculum = "joint"
    with pytest.raises(ValueError, match="train.curriculum = 'progressive', got 'joint'"):
        config.check()


def test_moments_in_8_bits_and_tensor_parallelism_exclude_each_other():
    pytest.importorskip("torchao")
    config = DistillConfig()
    config.train.adam_bits, config.parallel.tp = 8, 2
    with pytest.raises(ValueError, match=r"adam_bits = 8 does not support parallel\.tp = 2"):
        config.check()


def test_networks_are_built_by_name_with_their_arguments():
    schedule = MixtureTeacher.random(dim=2).schedule
    config = NetworkConfig(arguments={"width": 8, "depth": 1})
    config.check()
    network = config.build({"dim": 2, **config.arguments}, schedule)
    assert isinstance(network, MlpDenoiser) and network.schedule is schedule
    assert [p.shape[0] for p in network.parameters()] == [8, 8, 2, 2]
    config.arguments = {"width": -1}
    with pytest.raises(ValueError, match="network.arguments do not fit 'mlp'"):
        config.build({"dim": 2, **config.arguments}, schedule)


def test_a_network_of_a_plugin_takes_what_it_names(tmp_path):
    seen = []

    @networks.register("bare")
    def bare(schedule, kind, dim, classes, hidden=8):
        seen.append(hidden)
        return MlpDenoiser(dim=dim, classes=classes, width=hidden, schedule=schedule, kind=kind)

    try:
        config = DistillConfig()
        config.network = NetworkConfig(name="bare", arguments={"hidden": 16}, updates=2)
        config.check()
        config.teacher.name, config.out = "mixture", str(tmp_path / "run")
        Run(config, progress=False)
        assert seen == [16]
        config.network.arguments = {"width": 16}
        with pytest.raises(ValueError, match="network.arguments.width': bare takes hidden"):
            config.check()
    finally:
        networks.remove("bare")


def test_initializers_are_chosen_by_name():
    network = MlpDenoiser(dim=2, schedule=MixtureTeacher.random(dim=2).schedule)
    adapters = (LowRank(rank=2), None)
    built = {
        name: TrainConfig(initializer=name).build_initializer
        for name in ("teacher", "previous", "per_step")
    }
    assert isinstance(built["teacher"](), FromTeacher)
    assert isinstance(built["previous"](), FromPrevious)
    assert isinstance(built["per_step"]().inner, FromTeacher)
    assert built["teacher"](FromDenoiser(network)).denoiser is network
    assert built["per_step"](FromDenoiser(network)).inner.denoiser is network
    adapted = built["previous"](adapters=adapters)
    assert isinstance(adapted, LowRankRoles) and isinstance(adapted.start, FromPrevious)
    per_step = built["per_step"](adapters=adapters)
    assert isinstance(per_step, PerStep) and isinstance(per_step.inner, LowRankRoles)
    with pytest.raises(ValueError, match="'previous' needs a teacher with weights"):
        built["previous"](FromDenoiser(network))


def test_curricula_and_fake_scores_are_chosen_by_name():
    train = TrainConfig(curriculum="shared", fake_scores="per_exit_step")
    assert isinstance(train.build_curriculum(), Joint) and train.build_curriculum().shared
    assert isinstance(train.build_fake_scores(), OneFakeScorePerExitStep)
    assert [len(g) for g in TrainConfig(curriculum="joint").build_curriculum().groups(PLAN)] == [2]
    assert len(TrainConfig().build_curriculum().groups(PLAN)) == 2


def test_a_shared_network_is_one_network(tmp_path, finished):
    assert distill(tmp_path / "run", "--train.curriculum", "shared") == 0
    first, second = bits(tmp_path / "run").chunk(2)
    assert torch.equal(first, second)
    first, second = bits(finished).chunk(2)
    assert not torch.equal(first, second)


def test_a_composed_run_records_its_objectives(tmp_path):
    terms = '["distribution_matching", {name = "repulsion", weight = 0.5, phases = [2]}]'
    assert distill(tmp_path / "run", "--objective.generator", terms) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert "0.5 * (Repulsion" in summary["generator_objective"]
    rows = [json.loads(x) for x in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    assert ["repulsion" in str(row["scalars"]) for row in rows] == [False, True]
