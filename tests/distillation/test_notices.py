"""What is said in one line: untrained or misdeclared teachers, null prompts, no score matching."""

import json

import pytest
import torch

import pdmd
from pdmd import (
    CosineVP,
    FromDenoiser,
    Guided,
    MixtureTeacher,
    MlpDenoiser,
    PhasePlan,
    RectifiedFlow,
    Session,
    Shifted,
    SubintervalScoreMatching,
    VarianceExploding,
)
from pdmd.distillation.notices import (
    objective_notice,
    plan_notice,
    prompt_notice,
    score_notice,
)
from pdmd.evaluation.evaluate import euler_notice
from pdmd.objectives import Critics, DiscriminatorLoss
from pdmd.teachers import WithSchedule
from pdmd.teachers.packaged.digits import DigitsTeacher
from pdmd.training.conditions import ConditionStream
from pdmd.training.monitoring.recorder import Recorder, RunRecorder, notify
from pdmd.training.monitoring.self_calibration import own_slopes
from tests.conformance.test_scores import Misdeclared
from tests.helpers.broken_teachers import SmallTeacher
from tests.helpers.small_runs import small, untrained_student, weights

RIGHT = {
    "mixture": MixtureTeacher.random,
    "cosine": lambda: MixtureTeacher.random(schedule=CosineVP()),
    "variance exploding": lambda: MixtureTeacher.random(schedule=VarianceExploding(80.0)),
    "shifted": lambda: MixtureTeacher.random(schedule=Shifted(RectifiedFlow(), 5.0)),
    "guided": lambda: Guided(MixtureTeacher.random(classes=3), 4.0),
    "guided, on another schedule": lambda: WithSchedule(
        Guided(MixtureTeacher.random(classes=3), 4.0), CosineVP()
    ),
    "Gaussian, which few steps shorten": lambda: MixtureTeacher(torch.zeros(1, 2), 0.01),
    "digits": DigitsTeacher.from_package,
    "a student, which is no score": untrained_student,
}
WRONG = {
    "sign": {"sign": -1},
    "time": {"time": lambda t: 1 - t},
    "x0": {"kind": "x0"},
    "epsilon": {"kind": "epsilon"},
}


class Notices(Recorder):
    def __init__(self):
        self.lines = []

    def on_notice(self, notice):
        self.lines.append(notice)


def looked_at(teacher, rows=8):
    teacher = teacher.requires_grad_(False).eval()
    stream = ConditionStream(teacher.encode(teacher.prompts))
    return score_notice(teacher, teacher, stream, Session(), rows)


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_teacher_gives_no_line(name):
    assert looked_at(RIGHT[name]()) == ""


@pytest.mark.parametrize("fault", WRONG)
@pytest.mark.parametrize("build", [MixtureTeacher.random, DigitsTeacher.from_package])
def test_a_wrong_declaration_gives_a_line(build, fault):
    line = looked_at(Misdeclared(build(), **WRONG[fault]))
    assert "not the score of its own samples (noise slopes" in line and "pdmd check" in line


def test_random_weights_give_a_line():
    assert "are its weights trained" in looked_at(SmallTeacher())


class Rank:
    """One of two ranks, which averages with the other's value."""

    data_ranks = 2

    def __init__(self, data_rank, seen):
        self.data_rank, self.seen = data_rank, seen

    def mean(self, value):
        self.seen.append(value)
        return value


def test_the_rows_are_evaluated_in_batches_of_the_training_and_differ_between_ranks():
    teacher = MixtureTeacher.random()
    shapes, seen = [], [[], []]
    teacher.register_forward_pre_hook(lambda module, args: shapes.append(len(args[0])))
    for rank in (0, 1):
        own_slopes(teacher, None, 4, Rank(rank, seen[rank]), 2)
    assert {*shapes} == {2} and len(shapes) == 2 * 2 * 11  # ranks, batches, evaluations
    assert not torch.equal(seen[0][0], seen[1][0])


def test_the_check_changes_no_bits_and_can_be_turned_off():
    class Counting(MixtureTeacher):
        calls = 0

        def network(self, x_t, t, condition):
            Counting.calls += 1
            return super().network(x_t, t, condition)

    def once(**changes):
        Counting.calls = 0
        student = small(updates=2, plan=PhasePlan.uniform(1), **changes)
        return weights(student)

    state = torch.get_rng_state()
    checked, plain = once(check_score=True), once(check_score=False)
    assert torch.equal(checked, plain)
    torch.set_rng_state(state)
    calls = []
    for check in (True, False):
        Counting.calls = 0
        teacher = Counting(torch.tensor([[-1.0], [1.0]]), 0.3)
        network = MlpDenoiser.rectified_flow(dim=1, width=4)
        pdmd.distill(
            teacher,
            PhasePlan.uniform(1),
            updates=1,
            experts=pdmd.ExpertTraining(initializer=FromDenoiser(network)),
            check_score=check,
            progress=False,
        )
        calls.append(Counting.calls)
    assert calls[0] - calls[1] == 11


def test_lines_reach_the_recorder_and_the_report(tmp_path):
    notices = Notices()
    critics = Critics(lambda models, phase, example: None)
    assert "the fake score's objective (discriminator) is score" in objective_notice(
        DiscriminatorLoss(critics)
    )
    assert objective_notice(SubintervalScoreMatching() * 2 + DiscriminatorLoss(critics)) == ""
    assert objective_notice(SubintervalScoreMatching().only(1)) == ""
    small(updates=1, prompts=[None, None], recorder=notices, plan=PhasePlan.uniform(1))
    assert len(notices.lines) == 1 and "the only prompt is the null prompt" in notices.lines[0]
    assert prompt_notice(MixtureTeacher(torch.zeros(1, 2), 1.0), [None]) == ""  # takes no prompts
    recorder = RunRecorder(tmp_path, progress=False)
    recorder.on_notice(notices.lines[0])
    recorder.on_notice(notices.lines[0])  # said again by a resumed run
    notify(tmp_path, "another")
    notify(tmp_path, "")
    assert json.loads((tmp_path / "notices.json").read_text()) == [*notices.lines, "another"]


def test_a_plan_of_steps_where_nothing_is_left_of_the_data_is_said_to_be_so():
    linear = MixtureTeacher.random(schedule=VarianceExploding(80.0, rho=1.0))
    line = plan_notice(linear, PhasePlan.uniform(4))
    assert "at t = 0.25" in line and "still 20 times the signal" in line
    assert plan_notice(linear, PhasePlan.on(linear.schedule, 4)) == ""
    assert plan_notice(linear, PhasePlan.uniform(1)) == ""  # one step starts from noise
    usual = MixtureTeacher.random(schedule=VarianceExploding(80.0, sigma_min=0.002))
    assert plan_notice(usual, PhasePlan.uniform(4)) == ""
    assert plan_notice(MixtureTeacher.random(), PhasePlan.uniform(4, shift=50.0)) == ""


def test_a_student_worse_than_euler_steps_is_said_to_be_so():
    rows = [
        {"method": "teacher", "nfe": 50, "sw2": 0.1},
        {"method": "teacher_euler_4", "nfe": 4, "sw2": 0.5},
        {"method": "student", "nfe": 4, "sw2": 0.7},
    ]
    line = euler_notice(rows, ["sw2"])
    assert "no better than the teacher's own 4 Euler steps (sw2 0.7 and 0.5" in line
    rows[-1]["sw2"] = 0.4
    assert euler_notice(rows, ["sw2"]) == ""
    rows[-1]["sw2"] = None
    assert euler_notice(rows, ["sw2"]) == ""
    assert euler_notice(rows[:1], ["sw2"]) == ""  # a table without Euler steps
