import pytest
import torch
from tensordict import TensorDict

from pdmd import MixtureTeacher
from pdmd.objectives import Models, PhaseContext
from pdmd.objectives.adversarial import DiscriminatorLoss
from pdmd.objectives.critics import Critics
from pdmd.objectives.real_samples import DataSamples, PerPhase, TeacherSamples
from tests.objectives.test_adversarial import PLAN, pair


@pytest.mark.parametrize("phase", [0, 1])
def test_teacher_samples_have_the_teachers_distribution_and_their_labels(phase):
    means = torch.tensor([[-2.0], [2.0]], dtype=torch.float64)
    teacher = MixtureTeacher(means, 0.3, labels=torch.tensor([0, 1]))
    models = Models(real=teacher, fake=teacher, expert=teacher)

    def conditions(n, generator):
        return teacher.encode(torch.randint(2, (n,), generator=generator).tolist())

    source = TeacherSamples(pool=2000, steps=250, batch=700)
    draw = source.prepare(
        PhaseContext(models=models, phase=PLAN[phase], draw_conditions=conditions),
        torch.Generator().manual_seed(0),
    )
    x_s, condition = draw(4000, torch.Generator().manual_seed(1))
    alpha_s, sigma_s = teacher.schedule(PLAN[phase].t_end)
    for label, mean in ((0, -2.0), (1, 2.0)):
        own = x_s[condition["label"] == label]
        assert abs(float(own.mean()) - float(alpha_s * mean)) < 0.06
        spread = float((alpha_s**2 * 0.09 + sigma_s**2).sqrt())
        assert abs(float(own.std()) / spread - 1) < 0.08
    again = source.prepare(
        PhaseContext(models=models, phase=PLAN[phase], draw_conditions=conditions),
        torch.Generator().manual_seed(0),
    )
    assert torch.equal(again(4000, torch.Generator().manual_seed(1))[0], x_s)


def test_the_lowest_time_is_the_lowest_that_the_teacher_is_evaluated_at():
    times = []
    teacher = pair()[0]
    teacher.register_forward_pre_hook(lambda module, args: times.append(float(args[1])))
    models = Models(real=teacher, fake=teacher, expert=teacher)
    source = TeacherSamples(pool=2, steps=7)
    source.prepare(
        PhaseContext(models=models, phase=PLAN[0], draw_conditions=lambda n, g: None),
        torch.Generator(),
    )
    assert max(times) == 1.0
    assert min(times) == pytest.approx(source.lowest_time(PLAN[0]))
    side = DiscriminatorLoss(Critics(len), source)
    assert side.time_bounds(PLAN[0]) == (min(source.lowest_time(PLAN[0]), 0.51), 1.0)


def test_data_samples_are_diffused_data():
    teacher = pair()[0]
    models = Models(real=teacher, fake=teacher, expert=teacher)
    clean = torch.linspace(-1, 1, 20_000, dtype=torch.float64)[:, None]
    label = TensorDict({"label": torch.arange(20_000)}, batch_size=[20_000])
    source = DataSamples(lambda n, generator: (clean[:n], label[:n]))
    draw = source.prepare(
        PhaseContext(models=models, phase=PLAN[0], draw_conditions=None), torch.Generator()
    )
    x_s, condition = draw(20_000, torch.Generator().manual_seed(0))
    noise = (x_s - 0.5 * clean) / 0.5
    assert abs(float(noise.mean())) < 4 / 20_000**0.5
    assert abs(float(noise.var()) - 1) < 4 * (2 / 20_000) ** 0.5
    assert torch.equal(condition["label"], label["label"])
    last = source.prepare(
        PhaseContext(models=models, phase=PLAN[1], draw_conditions=None), torch.Generator()
    )
    assert torch.equal(last(5, torch.Generator())[0], clean[:5])
    with pytest.raises(ValueError, match=r"expected \(20001, 1\)"):
        draw(20_001, torch.Generator())


def test_items_are_kept_per_phase():
    items = PerPhase("critic", "create one")
    with pytest.raises(ValueError, match="phase 2 has no critic; create one"):
        items.get(PLAN[1])
    for item in ("first", "second"):
        items.set(PLAN[1], item)
        assert items.get(PLAN[1]) == item


@pytest.mark.parametrize("name", ["pool", "steps", "batch"])
def test_invalid_arguments_raise(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        TeacherSamples(**{name: 0})
