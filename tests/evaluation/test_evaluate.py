"""Evaluation of a student against its teacher, and its table."""

import pytest
import torch

from pdmd import Expert, MixtureTeacher, OdeExpert, PhasePlan, RectifiedFlow, Student
from pdmd.evaluation.evaluate import draw_samples, evaluate, format_table
from pdmd.evaluation.evaluators import MixtureEvaluator
from tests.helpers.broken_teachers import DroppingInTraining
from tests.helpers.small_runs import untrained_student


def test_a_student_of_teacher_experts_is_the_few_step_teacher():
    teacher = MixtureTeacher.random(dim=3, classes=2, modes=2)
    plan = PhasePlan.uniform(4)
    experts: list[Expert] = [OdeExpert(teacher, phase) for phase in plan]
    student = Student(experts, encode=teacher.encode, prompts=teacher.prompts)
    result = evaluate(student, teacher, samples=600, teacher_steps=20, progress=False)
    rows = {row["method"]: row for row in result["rows"]}
    assert list(rows) == ["real", "teacher", "teacher_euler_4", "student"]
    assert [row["nfe"] for row in rows.values()] == [0, 20, 4, 4]
    assert (result["quality"], result["diversity"]) == (
        MixtureEvaluator.quality,
        MixtureEvaluator.diversity,
    )
    assert isinstance(student.schedule, RectifiedFlow)
    assert rows["teacher"]["sw2"] < rows["teacher_euler_4"]["sw2"]
    gap = rows["student"]["sw2"] - rows["teacher_euler_4"]["sw2"]
    assert abs(gap) < 0.1  # the same sampler with another seed


def test_evaluation_is_deterministic_and_leaves_the_global_generator():
    teacher = MixtureTeacher.random(dim=2, classes=2, modes=1)
    experts: list[Expert] = [OdeExpert(teacher, phase) for phase in PhasePlan.uniform(2)]
    student = Student(experts, encode=teacher.encode, prompts=teacher.prompts)
    state = torch.get_rng_state()
    one, two = (
        evaluate(student, teacher, samples=100, teacher_steps=2, progress=False) for _ in range(2)
    )
    assert one == two and torch.equal(torch.get_rng_state(), state)


def test_a_teacher_in_training_mode_is_sampled_without_dropout():
    drawn = []
    for training in (False, True):
        teacher = DroppingInTraining().train(training)
        experts: list[Expert] = [
            OdeExpert(teacher.trainable_copy().eval(), PhasePlan.uniform(1)[0])
        ]
        student = Student(experts, encode=teacher.encode, prompts=teacher.prompts)
        drawn.append(draw_samples(student, teacher, samples=8, seed=0, teacher_steps=2))
        assert teacher.training == training
    for method, samples in drawn[0].items():
        assert torch.equal(samples, drawn[1][method])


def test_a_student_that_loses_to_euler_steps_is_said_to_be_so():
    teacher = MixtureTeacher.random(dim=2, classes=2, modes=2)
    options = {"samples": 200, "teacher_steps": 8, "progress": False}
    with pytest.warns(UserWarning, match="no better than the teacher's own 2 Euler steps") as said:
        evaluate(untrained_student(), teacher, **options)
    assert said[0].filename == __file__


def test_tables_are_aligned():
    lines = format_table(
        [{"method": "a", "nfe": 4, "x": 0.5}, {"method": "bb", "nfe": 50, "x": 1.0}]
    ).splitlines()
    assert lines == [
        "method  nfe      x",
        "------------------",
        "a         4  0.500",
        "bb       50  1.000",
    ]
