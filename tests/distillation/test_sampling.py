import pytest
import torch

from pdmd import MixtureTeacher, OdeExpert, PhasePlan, Student, sample, sample_ode, trajectory


def test_a_trajectory_maps_noise_through_all_experts():
    teacher, plan = MixtureTeacher.random(dim=2, classes=2), PhasePlan.uniform(3, steps=2)
    student = Student([OdeExpert(teacher, phase) for phase in plan], encode=teacher.encode)
    condition = teacher.encode([0, 1, 1])
    latents = trajectory(student, condition, generator=torch.Generator().manual_seed(0))
    assert len(latents) == 4
    for expert, x, y in zip(student.experts, latents[:-1], latents[1:], strict=True):
        assert torch.equal(expert(x, condition), y)
    final = sample(student, condition, generator=torch.Generator().manual_seed(0))
    assert torch.equal(final, latents[-1])
    flow = sample_ode(teacher, condition, steps=6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(final, flow)
    with pytest.raises(ValueError, match="batch = 2, but the condition has 3 rows"):
        sample(student, condition, batch=2)
