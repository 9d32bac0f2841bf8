"""Students of further families as pipelines of diffusers: they sample as the student does."""

import pytest
import torch

from pdmd import PhasePlan, Student, sample
from pdmd.distillation.experts import OdeExpert
from pdmd.export.diffusers import export_diffusers
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
)


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
    found = MORE[name]["run"](pipeline, teacher, condition, null, scale=1.0, steps=plan.nfe)
    expected = sample(student, condition, generator=torch.Generator().manual_seed(0))
    close(found, expected, MORE[name].get("atol", 2e-5))
