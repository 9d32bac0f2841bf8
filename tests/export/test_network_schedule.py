"""The network schedule: intervals, boundaries and renoising times of students."""

import copy

import pytest

from pdmd import MixtureTeacher, OdeExpert, PhasePlan, Student
from pdmd.distillation.adapters import adapt
from pdmd.distillation.experts import RenoisingExpert
from pdmd.export import export_diffusers, export_lora, network_intervals
from pdmd.export.network_schedule import base_networks, midpoints, pipeline_layout, renoise_times
from pdmd.teachers import QwenImageTeacher
from tests.helpers.exporting import BOUNDARY_ON_GRID, FOUR, RANK, student_of
from tests.helpers.tiny_more_flows import more


def test_every_phase_is_an_interval_with_midpoint_boundaries():
    student = student_of("qwen_image", FOUR, "folder")
    intervals = network_intervals(student)
    times = FOUR.timesteps
    assert [interval.times for interval in intervals] == [(t,) for t in times[:-1]]
    expected = [(t + s) / 2 for t, s in zip(times[:3], times[1:4], strict=True)]
    assert midpoints(intervals) == pytest.approx(expected)
    assert (
        len(base_networks(intervals)) == 4
        and pipeline_layout(intervals) is QwenImageTeacher.layout
    )


def test_adapters_share_their_base_network():
    intervals = network_intervals(student_of("qwen_image", FOUR, "folder", adapter=RANK))
    assert len(intervals) == 4 and len(base_networks(intervals)) == 1
    assert all(interval.factors() and interval.changes() for interval in intervals)


def test_renoising_steps_name_the_end_of_their_phase():
    student = student_of("wan_2.2_a14b", BOUNDARY_ON_GRID, "folder", expert=RenoisingExpert)
    assert renoise_times(student) == [0.875, None, 0.0, None]
    assert renoise_times(student_of("wan_2.2_a14b", BOUNDARY_ON_GRID, "folder")) is None


def test_a_family_whose_pipeline_differs_says_why():
    student = Student([OdeExpert(more("chroma"), phase) for phase in PhasePlan.uniform(1)])
    reason = "pipeline in diffusers that samples .*lets prompts attend to their padding"
    with pytest.raises(ValueError, match=reason):
        network_intervals(student)


def test_a_student_on_the_schedule_of_v_prediction_has_one_scheduler_and_no_adapter_files(
    tmp_path,
):
    teacher = copy.deepcopy(more("cogvideox_5b"))  # other tests share it
    part = adapt(teacher, RANK, seed=0)
    student = Student([OdeExpert(part, phase) for phase in PhasePlan.uniform(1, steps=2)])
    (interval,) = network_intervals(student)
    assert interval.network.kind == "v_prediction" and interval.times == (1.0, 0.5)
    with pytest.raises(ValueError, match="rectified flow, and this student is on DiscreteVP"):
        export_lora(student, tmp_path / "lora")
    with pytest.raises(ValueError, match="stock scheduler is one of rectified flow"):
        export_diffusers(student, tmp_path / "pipeline", scheduler="stock")
    teacher.kind = "epsilon"
    with pytest.raises(ValueError, match="or of networks of v-prediction on their own schedule"):
        network_intervals(student)


def test_a_network_without_a_pipeline_raises():
    teacher = MixtureTeacher.random()
    student = Student([OdeExpert(teacher, phase) for phase in PhasePlan.uniform(1)])
    with pytest.raises(ValueError, match="a MixtureTeacher has no pipeline in diffusers"):
        network_intervals(student)
