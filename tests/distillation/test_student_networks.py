"""Students whose experts have another network than their teacher: smaller, or of another class."""

import json

import pytest
import torch

from pdmd import ExpertTraining, PhasePlan, Rollouts, Student, distill
from pdmd.cli.config import DistillConfig
from pdmd.cli.config_sections.student import StudentConfig
from pdmd.cli.main import main
from pdmd.cli.plan import measure_run
from pdmd.diffusion.variance_preserving import CosineVP
from pdmd.distillation.adapters import LowRank
from pdmd.distillation.initializers import FromNetwork, FromPrevious, LowRankRoles
from pdmd.distillation.student_networks import check_conditions, matched, random_weights
from pdmd.export import export_diffusers
from pdmd.objectives import DistributionMatching, TrajectoryRegression
from pdmd.teachers import WithSchedule
from pdmd.teachers.base import teachers
from pdmd.teachers.families.tiny.pipelines import TINY, write_tiny_pipeline
from tests.helpers.trainings import SMALL, Images

PLAN = PhasePlan.uniform(2)
QWEN = {**TINY["qwen_image"].sizes, **TINY["qwen_image"].options}


def qwen(**changes):
    arguments = {**QWEN, "random_prompts": 2, **changes}
    return teachers["qwen_image"](**arguments)


def count(network):
    return sum(p.numel() for p in network.parameters())


def test_networks_that_do_not_fit_are_named():
    teacher = Images(**SMALL)
    with pytest.raises(ValueError, match=r"Images, takes latents of shape \(1, 4, 4\)"):
        matched(Images(**{**SMALL, "image_size": 4}), teacher)
    with pytest.raises(ValueError, match="a MixtureTeacher, has no weights to train"):
        matched(teachers["mixture"](dim=2), teacher)
    small, large = qwen(num_layers=1), qwen(joint_attention_dim=24)
    condition = large.encode(list(large.prompts)[:1])
    with pytest.raises(ValueError, match=r"not take the conditions of the teacher \(.*prompt"):
        check_conditions(small, condition)
    check_conditions(large, condition)
    assert not any(p.is_meta for p in large.parameters())


def test_a_network_on_another_schedule_is_converted():
    teacher, network = Images(**SMALL), Images(**SMALL)
    assert matched(network, teacher) is network
    other = WithSchedule.reach(network, CosineVP())
    found = matched(other, teacher)
    assert found.schedule is teacher.schedule
    x, t, condition = torch.randn(2, 1, 8, 8), torch.tensor([0.4, 0.7]), teacher.encode([1, 2])
    torch.testing.assert_close(
        found(x, t, condition).to("x0"),
        network(x, t, condition).to("x0"),
        rtol=1e-3,
        atol=1e-3,
    )


def test_experts_start_at_the_network_and_fake_scores_at_the_teacher():
    teacher, network = Images(**SMALL), Images(**{**SMALL, "depth": 1})
    init = FromNetwork(network)
    expert, fake = init.expert(teacher, PLAN[0], []), init.fake(teacher, PLAN[0])
    assert count(expert) == count(network) < count(teacher) == count(fake)
    assert FromPrevious(init).expert_source(teacher, PLAN[0], []) is network
    adapted = LowRankRoles(LowRank(rank=2), start=init).expert(teacher, PLAN[0], [])
    assert adapted.base is network


def test_a_smaller_student_is_distilled_and_trains_its_own_weights():
    torch.manual_seed(0)
    teacher, network = Images(**SMALL), Images(**{**SMALL, "depth": 1})
    before = [p.clone() for p in network.parameters()]
    student = distill(
        teacher,
        PLAN,
        updates=2,
        experts=ExpertTraining(initializer=FromNetwork(network)),
        rollouts=Rollouts(batch_size=4),
        check_score=False,
        progress=False,
    )
    assert [count(e) for e in student.experts] == [count(network)] * 2
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


def test_a_configuration_names_the_network():
    config = DistillConfig()
    config.student = StudentConfig(name="cat")
    with pytest.raises(ValueError, match="unknown teacher 'cat'"):
        config.check()
    config.student = StudentConfig(arguments={"depth": 1})
    with pytest.raises(ValueError, match=r"student\.arguments are those of student\.name"):
        config.check()
    config.student = StudentConfig(name="digits", start="runs/a/student")
    with pytest.raises(ValueError, match="has its own network, so that student.name = 'digits'"):
        config.check()


def test_random_weights_that_match_distributions_are_noticed():
    assert random_weights("qwen_image", {"num_layers": 1})
    assert not random_weights("qwen_image", {"folder": "Qwen/Qwen-Image"})
    assert not random_weights("digits", {})
    config = StudentConfig(name="qwen_image", arguments={"num_layers": 1})
    said = config.notice(DistributionMatching())
    assert "has random weights" in said and "--student.start runs/warm/student" in said
    assert config.notice(DistributionMatching() + TrajectoryRegression()) == ""
    assert StudentConfig(start="runs/a").notice(DistributionMatching()) == ""


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    """A run that regresses a smaller student on a tiny pipeline."""
    place = tmp_path_factory.mktemp("student")
    write_tiny_pipeline("qwen_image", place / "pipeline")
    assert run(place, "warm", *SMALLER, *REGRESSION) == 0
    return place


SMALLER = ("--student.name", "qwen_image", "--student.arguments", "num_layers", "1") + tuple(
    str(word) for pair in QWEN.items() if pair[0] != "num_layers" for word in pair
)
REGRESSION = ("--objective.generator", "trajectory_regression", "--train.fake-updates=0")


def run(place, name, *words):
    command = ["distill", "digits", "--out", str(place / name), "--teacher.name", "qwen_image"]
    arguments = {"folder": place / "pipeline", "dtype": "float32", **TINY["qwen_image"].options}
    return main(
        [
            *command,
            *("--teacher.arguments", *(str(word) for pair in arguments.items() for word in pair)),
            *("prompts", "validation_prompts"),
            *("--train.updates=1", "--train.batch-size=2", "--plan.phases=2"),
            *("--evaluate.at-end=never", "--teacher.no-check-score", "--no-progress"),
            *words,
        ]
    )


def test_a_run_goes_on_from_the_student_of_another(warm, capsys):
    first = Student.load(warm / "warm" / "student")
    source = json.loads((warm / "warm" / "student" / "student.json").read_text())["source"]
    assert source["student"]["teacher"] == "qwen_image"
    assert len(first.experts[0].denoiser.backbone.transformer_blocks) == 1
    start = str(warm / "warm" / "student")
    assert run(warm, "second", "--student.start", start, "--train.fake-updates=1") == 0
    assert "random weights" not in capsys.readouterr().err
    second = Student.load(warm / "second" / "student")
    assert second.source["student"] == source["student"]
    for a, b in zip(first.experts, second.experts, strict=True):
        pairs = zip(a.parameters(), b.parameters(), strict=True)
        change = max(float((p - q).abs().max()) for p, q in pairs)
        assert 0 < change < 0.01  # one update from where the other ended
    assert (
        "student.start" in next((warm / "second").glob("checkpoint/*/manifest.json")).read_text()
    )


def test_a_smaller_student_is_exported_with_its_own_configuration(warm, tmp_path):
    student = str(warm / "warm" / "student")
    assert main(["export", student, str(tmp_path / "out"), "--no-progress"]) == 0
    config = next((tmp_path / "out").glob("transformer/config.json")).read_text()
    assert '"num_layers": 1' in config
    other = Student.load(student)
    other.source["student"] = {**other.source["student"], "teacher": "flux"}
    with pytest.raises(ValueError, match="the network of 'flux' and take the texts"):
        export_diffusers(other, tmp_path / "other")


def test_the_plan_counts_the_experts_network():
    config = DistillConfig()
    config.teacher.name, config.teacher.arguments = "qwen_image", {**QWEN, "random_prompts": 1}
    config.student = StudentConfig(name="qwen_image", arguments={**QWEN, "num_layers": 1})
    config.train.batch_size = 2
    roles = measure_run(config).roles[0]
    assert roles.generator.parameters == count(qwen(num_layers=1))
    assert roles.fake.parameters == roles.teacher.parameters == count(qwen())
