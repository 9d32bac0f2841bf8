"""The network schedule: intervals, boundaries and renoising times of students."""

import pytest

from pdmd import MixtureTeacher, OdeExpert, PhasePlan, Student
from pdmd.distillation.experts import RenoisingExpert
from pdmd.export import network_intervals
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


@pytest.mark.parametrize(
    ("name", "reason"),
    [("chroma", "lets prompts attend to their padding"), ("cogvideox_5b", "rectified flow")],
)
def test_a_family_whose_pipeline_differs_says_why(name, reason):
    student = Student([OdeExpert(more(name), phase) for phase in PhasePlan.uniform(1)])
    with pytest.raises(ValueError, match=f"pipeline in diffusers that samples .*{reason}"):
        network_intervals(student)


def test_a_network_without_a_pipeline_raises():
    teacher = MixtureTeacher.random()
    student = Student([OdeExpert(teacher, phase) for phase in PhasePlan.uniform(1)])
    with pytest.raises(ValueError, match="a MixtureTeacher has no pipeline in diffusers"):
        network_intervals(student)
