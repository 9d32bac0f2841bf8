"""Model families against the pipelines of diffusers: conventions, guidance, routing."""

import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pdmd import Guided, PhasePlan
from pdmd.diffusion.schedules import shift_times
from pdmd.teachers import QwenImageTeacher, WanTeacher
from pdmd.teachers.families.boundaries import boundary_router
from pdmd.teachers.families.tokens import pack
from tests.helpers.tiny_families import (
    FAMILIES,
    WAN,
    close,
    family,
    noise,
    ode,
    qwen_pipeline,
    run_qwen,
    run_wan,
    transformers,
    unpadded,
    wan_pipeline,
)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"shift": 3.0},
        {"use_dynamic_shifting": True, "max_shift": 0.9, "max_image_seq_len": 8192},
        {
            "use_dynamic_shifting": True,
            "max_shift": 0.9,
            "max_image_seq_len": 8192,
            "shift_terminal": 0.02,
        },
    ],
    ids=["unshifted", "static", "shifted", "released"],
)
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_qwen_image_samples_as_its_pipeline_does(arguments, scale):
    teacher = family("qwen_image")
    null, condition = unpadded(teacher.encode(["random 0"])), teacher.encode(["random 1", None])
    assert null["prompt"].shape[1] < condition["prompt"].shape[1]
    pipeline = qwen_pipeline(teacher, **arguments)
    expected = run_qwen(pipeline, teacher, condition, null, scale=scale, steps=5)
    times = pipeline.scheduler.sigmas.tolist()
    close(ode(Guided(teacher, scale, null), condition, times), expected)
    if "shift_terminal" not in arguments:
        dynamic = "use_dynamic_shifting" in arguments
        shift = teacher.shift if dynamic else arguments.get("shift", 1.0)
        even = 1 - torch.arange(6, dtype=torch.float64) / 5
        close(torch.tensor(times, dtype=torch.float64), shift_times(even, shift), 1e-6)


def test_the_norm_rescale_is_what_the_pipeline_needs():
    teacher = family("qwen_image")
    condition, null = teacher.encode(teacher.prompts), teacher.encode([None])
    pipeline = qwen_pipeline(teacher)
    expected = run_qwen(pipeline, teacher, condition, null, scale=4.0, steps=3)

    class Plain(QwenImageTeacher):
        guide = Guided.guide

    plain = Plain(teacher.backbone, height=64, width=48, prompts=teacher.text)
    times = pipeline.scheduler.sigmas.tolist()
    assert (ode(Guided(plain, 4.0), condition, times) - expected).abs().max() > 1e-2


def test_conditions_without_padding_go_without_a_mask():
    teacher, seen = family("qwen_image"), []
    condition = teacher.encode(teacher.prompts)
    row = condition[:1]
    short = unpadded(row)
    assert short["prompt"].shape[1] < 7
    handle = teacher.backbone.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["encoder_hidden_states_mask"]),
        with_kwargs=True,
    )
    x = noise(teacher, 1)
    with torch.no_grad():
        padded, bare = teacher(x, 0.5, row).value, teacher(x, 0.5, short).value
    handle.remove()
    assert seen[0] is not None and seen[1] is None
    close(padded, bare)


@pytest.mark.parametrize(
    ("name", "scales"),
    [
        ("wan_2.1", (5.0,)),
        ("wan_2.2_a14b", (4.0, 3.0)),
        ("wan_2.2_a14b", (4.0, 1.0)),
        ("wan_2.2_5b", (5.0,)),
        ("wan_2.1", (1.0,)),
    ],
)
def test_wan_samples_as_its_pipeline_does(name, scales):
    teacher = family(name)
    condition, null = teacher.encode(teacher.prompts), teacher.encode([None])
    pipeline = wan_pipeline(teacher, expand=name == "wan_2.2_5b", shift=teacher.shift)
    second = scales[1] if len(scales) > 1 else None
    expected = run_wan(
        pipeline, teacher, condition, null, scale=scales[0], scale_2=second, steps=5
    )
    times = pipeline.scheduler.sigmas.tolist()
    if len(scales) > 1:
        assert min(times) < 0.875 < times[1]
    close(ode(Guided(teacher, scales), condition, times), expected)


@pytest.mark.parametrize("ratio", [0.875, 0.9, 0.417])
def test_wan_routes_the_boundary_and_its_neighbours_as_its_pipeline_does(ratio):
    teacher = WanTeacher.from_config(**{**WAN, "boundary_ratio": ratio, "num_layers": 1})
    at = np.float32(ratio)
    times = [1.0, np.nextafter(at, np.float32(1)), at, np.nextafter(at, np.float32(0)), 0.2, 0.0]
    times = [float(t) for t in times]
    pipeline = wan_pipeline(teacher, ratio=ratio)
    given_sigmas = functools.partial(pipeline.scheduler.set_timesteps, sigmas=times[:-1])
    pipeline.scheduler.set_timesteps = lambda n, device=None: given_sigmas(device=device)
    used = {"pipeline": [], "teacher": []}
    who = "pipeline"
    for i, part in enumerate(transformers(teacher)):
        part.register_forward_pre_hook(lambda *_, i=i: used[who].append(i))
    condition, null = teacher.encode(teacher.prompts[:1]), teacher.encode([None])
    expected = run_wan(pipeline, teacher, condition, null, scale=1.0, steps=5)
    who = "teacher"
    close(ode(teacher, condition, times), expected)
    assert used["teacher"] == used["pipeline"]
    assert used["pipeline"][2:4] == [0, 1]


@given(st.floats(0.01, 0.99), st.integers(-3, 3))
@settings(max_examples=200)
def test_every_float32_time_goes_where_the_pipeline_sends_it(ratio, steps):
    t = np.float32(ratio)
    for _ in range(abs(steps)):
        t = np.nextafter(t, np.float32(steps > 0))
    high = bool(torch.tensor(t) >= torch.tensor(np.float32(ratio)))
    assert int(boundary_router(ratio)(float(t))) == (0 if high else 1)


def oracle(teacher, x0, scale):
    """Makes the network know the data: it sees its input and its time, and nothing else."""

    def forward(self, hidden_states, timestep, **kwargs):
        rows = len(hidden_states)
        sigma = (timestep / scale).reshape(rows, *[1] * (hidden_states.ndim - 1))
        return ((hidden_states - x0) / sigma,)

    for part in transformers(teacher):
        part.forward = functools.partial(forward, part)


@pytest.mark.parametrize("name", FAMILIES)
def test_an_oracle_gets_its_data_back(name):
    cls, arguments = FAMILIES[name]
    teacher = cls.from_config(**arguments)
    x0 = noise(teacher, 1, seed=1)
    condition, null = teacher.encode(teacher.prompts), teacher.encode([None])
    times = PhasePlan.uniform(4, shift=teacher.shift).timesteps
    if name == "qwen_image":
        oracle(teacher, pack(x0), 1)
        pipeline = qwen_pipeline(teacher)
        theirs = run_qwen(pipeline, teacher, condition, null, scale=4.0, steps=4)
    else:
        oracle(teacher, x0, 1000)
        pipeline = wan_pipeline(teacher, expand=False, shift=3.0)
        theirs = run_wan(pipeline, teacher, condition, null, scale=4.0, steps=4)
    everywhere = x0.expand(3, *teacher.latent_shape)
    close(theirs, everywhere)
    close(ode(teacher, condition, times), everywhere)
    close(ode(Guided(teacher, 4.0), condition, times), everywhere)
    t = torch.tensor([0.2, 0.6, 1.0])
    x_t = noise(teacher, 3)
    with torch.no_grad():
        close(teacher(x_t, t, condition).to("x0"), everywhere)
