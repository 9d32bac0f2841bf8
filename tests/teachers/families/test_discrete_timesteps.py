"""Families of discrete timesteps against the pipelines and schedulers of diffusers."""

import numpy as np
import pytest
import torch

from pdmd import (
    DiscreteVP,
    Guided,
    PhasePlan,
    RectifiedFlow,
    sample,
)
from pdmd.diffusion.solvers import ode_step
from pdmd.teachers import (
    DDPMTeacher,
    SDXLTeacher,
    StableDiffusionTeacher,
    WithSchedule,
)
from pdmd.teachers.families.discrete_timesteps import SCALED_LINEAR, noise_levels, timestep_of
from tests.helpers.distilling import distill
from tests.helpers.tiny_discrete import (
    FAMILIES,
    conditions,
    family,
    network_of,
    scheduler,
    theirs,
)
from tests.helpers.tiny_families import close, noise, ode

STEPS = [1.0, 0.75, 0.5, 0.25, 0.0]


@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_samples_as_its_pipeline_does(name, scale):
    teacher = family(name)
    condition, null = conditions(teacher)
    if condition is None and scale != 1:
        with pytest.raises(ValueError, match="takes no conditions"):
            Guided(teacher, scale)
        return
    expected = theirs(name, teacher, condition, null, scale=scale)
    x = noise(teacher, 2)
    assert float((expected - x).abs().max()) > 0.1
    denoiser = Guided(teacher, scale)
    for t, s in zip(STEPS, STEPS[1:], strict=False):
        with torch.no_grad():
            x = ode_step(denoiser(x, t, condition), s)
    scaled = 2e-5 * max(1.0, float(expected.abs().max()))
    close(x, expected, scaled)
    if condition is not None:
        close(ode(denoiser, condition, STEPS), expected, scaled)


@pytest.mark.parametrize("name", ["sd", "sd_v", "sdxl", "dit", "ddpm"])
def test_a_last_step_to_the_first_level_is_the_pipelines_too(name):
    """Schedulers of the field end at level 0 where set_alpha_to_one is false."""
    teacher = family(name)
    condition, null = conditions(teacher)
    expected = theirs(name, teacher, condition, null, set_alpha_to_one=False)
    x = noise(teacher, 2)
    times = [*STEPS[:-1], 1e-3]
    for t, s in zip(times, times[1:], strict=False):
        with torch.no_grad():
            x = ode_step(teacher(x, t, condition), s)
    close(x, expected, 2e-5 * max(1.0, float(expected.abs().max())))


@pytest.mark.parametrize("name", FAMILIES)
def test_levels_are_the_schedulers_and_times_the_networks(name):
    teacher = family(name)
    own = scheduler(teacher).alphas_cumprod.double()
    level = torch.tensor([0, 1, 249, 998, 999])
    alpha, sigma = teacher.schedule((level.double() + 1) / 1000)
    torch.testing.assert_close(alpha**2, own[level], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(sigma**2, 1 - own[level], rtol=1e-6, atol=1e-9)
    assert torch.equal(timestep_of((level.double() + 1) / 1000, teacher.levels), level.float())
    assert teacher.time_range == (1e-3, 1.0)
    assert teacher.schedule.prior_std() == pytest.approx(1.0, abs=1e-12)
    # between levels, time and log-SNR move together
    between = teacher.schedule.t_from_log_snr(
        0.5 * sum(teacher.schedule.log_snr(v) for v in (0.5, 0.501))
    )
    assert float(timestep_of(between, teacher.levels)) == pytest.approx(499.5, abs=1e-3)


@pytest.mark.parametrize("name", FAMILIES)
def test_an_oracle_gets_its_data_back(name):
    """A network that sees its input and its time, and knows the data besides."""
    cls, arguments = FAMILIES[name]
    teacher = cls.from_config(**arguments)
    x0 = noise(teacher, 2, seed=1)
    own = scheduler(teacher).alphas_cumprod.double().numpy()
    known = own > 0
    log_snr = np.log(own[known] / (1 - own[known]))

    def forward(sample, timestep, *args, return_dict=True, **kwargs):
        level = torch.as_tensor(timestep).expand(len(sample)).double().numpy()
        share = 1 / (1 + np.exp(-np.interp(level, np.arange(len(log_snr)), log_snr)))
        share = np.where(known[level.astype(int)], share, 0.0)
        a, s = (
            torch.tensor(np.sqrt(v), dtype=torch.float32).reshape(-1, 1, 1, 1)
            for v in (share, 1 - share)
        )
        epsilon = (sample - a * x0) / s
        kinds = {"epsilon": epsilon, "v_prediction": a * epsilon - s * x0}
        value = kinds.get(teacher.kind, x0.expand_as(sample))
        if name in ("dit", "ddpm_sigma"):
            value = torch.cat([value, torch.full_like(value, torch.nan)], 1)
        return type("out", (), {"sample": value}) if return_dict else (value,)

    network_of(teacher).forward = forward
    condition, null = conditions(teacher)
    tolerance = 1e-4  # epsilon is divided by the little signal of the last level
    x = noise(teacher, 2)
    for t, s in zip(STEPS, STEPS[1:], strict=False):
        prediction = teacher(x, t, condition)
        close(prediction.to("x0"), x0, tolerance)
        x = ode_step(prediction, s)
    close(x, x0, tolerance)
    if name != "sd_zero":
        flow = WithSchedule.reach(teacher, RectifiedFlow())
        t = torch.tensor([0.9, 0.2])
        alpha, sigma = (v.reshape(-1, 1, 1, 1).float() for v in flow.schedule(t))
        y = alpha * x0 + sigma * noise(teacher, 2)
        nearest = teacher.schedule.t_from_log_snr(flow.schedule.log_snr(t.double()))
        assert not torch.equal(nearest * 1000, (nearest * 1000).round())
        close(flow(y, t, condition).to("x0"), x0, tolerance)
        close(y - t.reshape(-1, 1, 1, 1) * flow(y, t, condition).value, x0, tolerance)


@pytest.mark.parametrize("name", FAMILIES)
def test_copies_are_the_teacher_and_train(name):
    teacher = family(name)
    condition, _ = conditions(teacher)
    x = noise(teacher, 2)
    copy = teacher.trainable_part(0.8, 0.5)
    with torch.no_grad():
        for _ in range(8):  # labels are not dropped
            close(copy(x, 0.6, condition).value, teacher(x, 0.6, condition).value)
    copy(x, 0.6, condition).value.square().sum().backward()
    grads = [p.grad is not None and bool(p.grad.isfinite().all()) for p in copy.parameters()]
    assert sum(grads) > 0.8 * len(grads)
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize("name", ["sd", "sd_zero", "ddpm", "dit"])
def test_a_plan_from_noise_distills(name):
    teacher = family(name)
    prompts = None if name == "ddpm" else list(teacher.prompts)[:2]
    student = distill(
        teacher, PhasePlan.uniform(2), prompts, updates=1, fake_updates=1, batch_size=2
    )
    condition = None if prompts is None else student.encode(prompts)
    generator = torch.Generator().manual_seed(0)
    assert sample(student, condition, batch=2, generator=generator).isfinite().all()
    assert isinstance(student.schedule, DiscreteVP)


def test_other_familys_folders_and_networks_are_refused(tmp_path):
    from diffusers import FlowMatchEulerDiscreteScheduler, UNet2DConditionModel, UNet2DModel

    FlowMatchEulerDiscreteScheduler().save_pretrained(tmp_path / "scheduler")
    with pytest.raises(ValueError, match=r"\(FlowMatchEulerDiscreteScheduler\) states no betas"):
        StableDiffusionTeacher.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="betas that diffusers does not know"):
        noise_levels({"beta_schedule": "own"})
    schedule, kind = noise_levels(SCALED_LINEAR)
    given = {"schedule": schedule, "kind": kind}
    with torch.device("meta"):
        inpainting = UNet2DConditionModel(in_channels=9)
        guided = UNet2DConditionModel(time_cond_proj_dim=256)
        labelled = UNet2DConditionModel(num_class_embeds=4)
        unsized = UNet2DConditionModel()
        fourier = UNet2DModel(time_embedding_type="fourier")
        classes = UNet2DModel(num_class_embeds=10)
        odd = UNet2DModel(out_channels=4)
    for network, message in (
        (inpainting, "needs an image besides noise"),
        (guided, "time_cond_proj_dim"),
        (labelled, "num_class_embeds are not supported"),
        (unsized, "states no sample_size"),
        (family("sdxl").backbone, "load it with the teacher of its family"),
    ):
        with pytest.raises(ValueError, match=message):
            StableDiffusionTeacher(network, **given)
    with pytest.raises(ValueError, match="load it with the teacher of its family"):
        SDXLTeacher(family("sd").backbone, **given)
    for network, message in (
        (fourier, "time_embedding_type 'positional'"),
        (classes, "only unconditional"),
        (odd, "has 3 input and 4 output channels"),
    ):
        with pytest.raises(ValueError, match=message):
            DDPMTeacher(network, **given)
