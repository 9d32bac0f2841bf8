import pytest
import torch

from pdmd import (
    MixtureTeacher,
    MlpDenoiser,
    OdeExpert,
    Phase,
    RectifiedFlow,
    RenoisingExpert,
    StochasticTruncation,
)

PHASE = Phase(index=0, timesteps=(1.0, 0.8, 0.6), t_end=0.5, score_range=(0.5, 1.0))


def test_the_ode_expert_takes_euler_steps_on_rectified_flow():
    teacher, x = MixtureTeacher.random(dim=3, classes=0), torch.randn(4, 3)
    x_s, expected = OdeExpert(teacher, PHASE)(x), x
    for t, s in ((1.0, 0.8), (0.8, 0.6), (0.6, 0.5)):
        expected = expected + (s - t) * teacher(expected, t).value
    torch.testing.assert_close(x_s, expected)


@pytest.mark.parametrize("kind", [OdeExpert, RenoisingExpert])
def test_truncation_has_a_gradient_through_the_last_step_only(kind):
    torch.manual_seed(0)
    calls = []

    class Recording(MlpDenoiser):
        def network(self, x_t, t, condition):
            out = super().network(x_t, t, condition)
            calls.append((float(t[0]), out.requires_grad))
            return out

    expert = kind(Recording(dim=2, schedule=RectifiedFlow(), width=8), PHASE)
    expert(torch.randn(3, 2), generator=torch.Generator().manual_seed(0), exit_step=1)
    assert calls == [(1.0, False), (0.8, True)]
    calls.clear()
    expert(torch.randn(3, 2), generator=torch.Generator().manual_seed(0))
    assert calls == [(1.0, True), (0.8, True), (0.6, True)]


def test_every_exit_step_is_sampled():
    generator = torch.Generator().manual_seed(0)
    assert {StochasticTruncation()(PHASE, generator) for _ in range(50)} == {0, 1, 2}


def test_exit_steps_outside_the_phase_raise():
    with pytest.raises(ValueError, match="got 3"):
        OdeExpert(MixtureTeacher.random(dim=2, classes=0), PHASE)(torch.randn(1, 2), exit_step=3)
