"""Students of Qwen-Image-Edit as pipelines and as files: they edit as the student does."""

import pytest
import torch

from pdmd import LowRank, PhasePlan, Student, sample
from pdmd.distillation.adapters import adapt, adapted_parts
from pdmd.distillation.experts import OdeExpert
from pdmd.export.card import scheduler_lines
from pdmd.export.diffusers import export_diffusers
from pdmd.export.lora import export_lora
from pdmd.teachers import QwenImageEditTeacher
from pdmd.teachers.conditioning.prompt_files import read_image_prompts
from pdmd.teachers.families.tiny.pipelines import IMAGE_PROMPTS, write_tiny_pipeline
from tests.helpers.editing import SIZE, run
from tests.helpers.tiny_encoders import picture
from tests.helpers.tiny_families import close, noise


def student_over(base, plan, *, adapter=None):
    """Returns a student of the tiny pipeline whose experts all differ from their teacher."""
    prompts = read_image_prompts(str(base / IMAGE_PROMPTS))
    teacher = QwenImageEditTeacher.from_pretrained(base, prompts=prompts, dtype="float32", **SIZE)
    generator = torch.Generator().manual_seed(0)
    experts = []
    for phase in plan:
        part = teacher.trainable_part(phase.t_start, phase.t_end)
        moved = list(part.parameters())
        if adapter is not None:
            part = adapt(teacher.part(phase.t_start, phase.t_end), adapter, seed=0)
            moved = [f.lora_B.weight for a in adapted_parts(part) for f in a.factors().values()]
        for parameter in moved:
            scale = 0.1 if adapter else 0.1 * parameter.std(correction=0)
            parameter.data.add_(scale * torch.randn(parameter.shape, generator=generator))
        experts.append(OdeExpert(part.requires_grad_(False), phase))
    source = {"teacher": "qwen_image_edit", "arguments": {"folder": str(base), **SIZE}}
    return Student(experts, encode=teacher.encode, prompts=prompts, source=source).eval()


def check_edits(pipeline, student):
    """Compares a pipeline's sample of the first prompt with the student's."""
    pipeline.set_progress_bar_config(disable=True)
    condition = student.encode(list(student.prompts)[:1])
    pipeline._encode_vae_image = lambda image, generator: condition["reference"][:, :, None]
    given = {"prompt_embeds": condition["prompt"], "prompt_embeds_mask": condition["mask"]}
    image, start = picture(0).resize((64, 32)), noise(student, 1)
    found = run(pipeline, student, image, start, scale=1.0, **given)
    close(found, sample(student, condition, generator=torch.Generator().manual_seed(0)))


def test_an_exported_student_edits_as_it_does_here(tmp_path):
    from diffusers import DiffusionPipeline

    base = write_tiny_pipeline("qwen_image_edit", tmp_path / "base")
    plan = PhasePlan.from_timesteps([1, 0.6, 0.31, 0], steps=[1, 1, 1])
    student = student_over(base, plan)
    folder = export_diffusers(student, tmp_path / "exported")
    assert (folder / "processor" / "preprocessor_config.json").is_file()
    card = (folder / "README.md").read_text()
    assert "# the image to edit" in card and "ftfy" not in card
    more = {"trust_remote_code": True, "processor": None}  # which needs torchvision
    check_edits(DiffusionPipeline.from_pretrained(folder, **more), student)


@pytest.mark.slow
def test_adapters_are_files_that_the_pipeline_loads(tmp_path):
    from diffusers import DiffusionPipeline

    base = write_tiny_pipeline("qwen_image_edit", tmp_path / "base")
    plan = PhasePlan.from_timesteps([1, 0.6, 0.31, 0], steps=[3])
    student = student_over(base, plan, adapter=LowRank(rank=2, alpha=3.0))
    folder = export_lora(student, tmp_path / "lora", format="diffusers")
    pipe = DiffusionPipeline.from_pretrained(base, processor=None)
    pipe.load_lora_weights(folder, weight_name="pytorch_lora_weights.safetensors")
    exec("\n".join(scheduler_lines(plan.timesteps[:-1])), {"pipe": pipe})
    check_edits(pipe, student)
