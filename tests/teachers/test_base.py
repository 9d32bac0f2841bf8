import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pdmd import Guided, MixtureTeacher, teachers
from tests.helpers.strategies import mixtures, schedules, seeds, teacher_of


@given(schedules, mixtures(), st.floats(0.02, 0.98), seeds)
def test_the_mixture_score_is_the_gradient_of_its_density(schedule, mixture, t, seed):
    teacher = teacher_of(mixture, schedule, "score")
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(5, mixture["means"].shape[1], generator=generator, dtype=torch.float64)
    x.requires_grad_(True)
    (score,) = torch.autograd.grad(teacher.log_prob(x, t).sum(), x)
    torch.testing.assert_close(teacher(x, t).value, score, rtol=1e-9, atol=1e-9)


@given(schedules, mixtures(), seeds)
def test_the_density_takes_a_time_for_every_sample(schedule, mixture, seed):
    teacher = teacher_of(mixture, schedule, "score")
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(5, mixture["means"].shape[1], generator=generator, dtype=torch.float64)
    t = 0.05 + 0.9 * torch.rand(5, generator=generator, dtype=torch.float64)
    alone = torch.stack([teacher.log_prob(x[i : i + 1], t[i])[0] for i in range(5)])
    torch.testing.assert_close(teacher.log_prob(x, t), alone, rtol=1e-12, atol=1e-12)


def test_classes_restrict_the_modes():
    teacher = MixtureTeacher.random(dim=3, classes=4, modes=2)
    condition = teacher.encode([2, "2", None])
    x = torch.randn(3, 3, dtype=torch.float64)
    own = MixtureTeacher(teacher.means[4:6], 0.3)
    value = teacher(x, 0.5, condition).value
    torch.testing.assert_close(value[:2], own(x[:2], 0.5).value)
    torch.testing.assert_close(value[2:], teacher(x[2:], 0.5).value)


@pytest.mark.parametrize("prompt", [4, -1, "cat", 1.5, "", "²"])
def test_bad_prompts_are_named(prompt):
    with pytest.raises(ValueError, match="not a class from 0 to 3"):
        MixtureTeacher.random(classes=4).encode([prompt])


@pytest.mark.parametrize("name", ["digits", "mixture"])
def test_guidance(name):
    teacher = teachers.get(name)()
    condition = teacher.encode([1, 2, 3])
    x = torch.randn(3, *teacher.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        conditional = teacher(x, 0.6, condition).value
        unconditional = teacher(x, 0.6, teacher.encode([None] * 3)).value
        assert torch.equal(Guided(teacher, 1.0)(x, 0.6, condition).value, conditional)
        guided = Guided(teacher, 3.0)(x, 0.6, condition).value
    expected = unconditional + 3 * (conditional - unconditional)
    torch.testing.assert_close(guided, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(guided, conditional, atol=1e-3)


@pytest.mark.parametrize("name", ["digits", "mixture"])
def test_samples_do_not_depend_on_their_batch(name):
    teacher = teachers.get(name)()
    x = torch.randn(4, *teacher.latent_shape, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.1, 0.4, 0.7, 1.0])
    with torch.no_grad():
        whole = teacher(x, t, teacher.encode([1, 2, 3, 4])).value
        alone = teacher(x[2:3], t[2:3], teacher.encode([3])).value
    torch.testing.assert_close(whole[2:3], alone, rtol=1e-4, atol=1e-5)


def test_unknown_names_suggest():
    with pytest.raises(ValueError, match="did you mean 'digits'"):
        teachers.get("digit")
