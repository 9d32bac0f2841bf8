"""Students of further families as pipelines of diffusers: they sample as the student does."""

import warnings

import pytest
import torch

from pdmd import LowRank, PhasePlan, Student, sample
from pdmd.distillation.adapters import adapt, adapted_parts
from pdmd.distillation.experts import OdeExpert
from pdmd.export.card import scheduler_lines
from pdmd.export.diffusers import export_diffusers
from pdmd.export.lora import export_lora
from tests.helpers.tiny_families import close
from tests.helpers.tiny_more_flows import MORE, more, pipeline_of, registered

EXPORTED = (
    "sana",
    "flux2",
    "flux2_klein",
    "kandinsky5",
    "kandinsky5_image",
    "hunyuan_video15",
    "cosmos_predict25",
    "ltx2",
    "ltx2_gated",
    "cogvideox_2b",
    "cogvideox_1.5",
)


EXPORTED = tuple(name for name in EXPORTED if name in MORE)


@pytest.mark.parametrize("name", EXPORTED)
def test_an_exported_student_samples_as_it_does_here(tmp_path, name):
    from diffusers import DiffusionPipeline

    teacher = more(name)
    pipeline_of(name, text=True).save_pretrained(tmp_path / "base")
    plan = PhasePlan.from_timesteps([1, 0.6, 0.31, 0], steps=[1, 1, 1])
    generator = torch.Generator().manual_seed(0)
    experts = []
    for phase in plan:
        part = teacher.trainable_part(phase.t_start, phase.t_end).requires_grad_(False)
        for parameter in part.parameters():
            scale = 0.1 * parameter.std(correction=0)
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
        experts.append(OdeExpert(part, phase))
    source = {"teacher": registered(name), "arguments": {"folder": str(tmp_path / "base")}}
    student = Student(experts, encode=teacher.encode, prompts=teacher.prompts, source=source)
    folder = export_diffusers(student.eval(), tmp_path / "exported")
    card = (folder / "README.md").read_text()
    assert all(f"{key}={value}" in card for key, value in teacher.call_arguments.items())
    given = MORE[name].get("given", {})
    pipeline = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True, **given)
    pipeline.set_progress_bar_config(disable=True)
    condition, null = teacher.encode(teacher.prompts), teacher.encode([None])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "this student has its guidance within")
        found = MORE[name]["run"](pipeline, teacher, condition, null, scale=1.0, steps=plan.nfe)
    expected = sample(student, condition, generator=torch.Generator().manual_seed(0))
    close(found, expected, MORE[name].get("atol", 2e-5))
    if teacher.layout.unguided:
        with pytest.warns(UserWarning, match="guidance within.* pass guidance_scale="):
            MORE[name]["run"](pipeline, teacher, condition, null, scale=3.0, steps=plan.nfe)


WITHOUT_LORA = ("hunyuan_video15", "cogvideox_2b", "cogvideox_1.5")
WITH_LORA = tuple(name for name in EXPORTED if name not in WITHOUT_LORA)


FAST = ("flux2", "ltx2")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in WITH_LORA]
)
def test_adapters_are_files_that_the_pipeline_loads(tmp_path, name):
    from diffusers import DiffusionPipeline

    teacher = more(name)
    pipeline_of(name, text=True).save_pretrained(tmp_path / "base")
    plan = PhasePlan.from_timesteps([1, 0.8, 0.6, 0], steps=[2, 1])
    generator = torch.Generator().manual_seed(0)
    experts = []
    for phase in plan:
        part = adapt(teacher.part(phase.t_start, phase.t_end), LowRank(rank=2, alpha=3.0), seed=0)
        for adapter in adapted_parts(part):
            for factors in adapter.factors().values():
                weight = factors.lora_B.weight
                weight.data.add_(0.1 * torch.randn(weight.shape, generator=generator))
        experts.append(OdeExpert(part.requires_grad_(False), phase))
    source = {"teacher": registered(name), "arguments": {"folder": str(tmp_path / "base")}}
    student = Student(experts, encode=teacher.encode, prompts=teacher.prompts, source=source)
    folder = export_lora(student.eval(), tmp_path / "lora", format="diffusers")
    given = MORE[name].get("given", {})
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "base", **given)
    pipe.set_progress_bar_config(disable=True)
    for file in ("high_noise_model", "low_noise_model"):
        pipe.load_lora_weights(
            folder, weight_name=f"{file}.safetensors", adapter_name=file, local_files_only=True
        )
    scale = teacher.layout.time_scale

    def select(network, arguments, more):  # as the card's lines do
        time = float(more["timestep"].flatten()[0]) / scale
        network.set_adapter("low_noise_model" if time < 0.7 else "high_noise_model")

    pipe.transformer.register_forward_pre_hook(select, with_kwargs=True)
    exec("\n".join(scheduler_lines(plan.timesteps[:-1])), {"pipe": pipe})
    condition, null = teacher.encode(teacher.prompts), teacher.encode([None])
    found = MORE[name]["run"](pipe, teacher, condition, null, scale=1.0, steps=plan.nfe)
    expected = sample(student, condition, generator=torch.Generator().manual_seed(0))
    close(found, expected, MORE[name].get("atol", 2e-5))
