"""Guidance over a student that has its own is warned of, once a call, and nothing else is."""

import warnings

import pytest
import torch

from pdmd.export import export_diffusers
from pdmd.export.modules.phased_scheduler import PhasedScheduler
from tests.helpers.exporting import (
    BOUNDARY_ON_GRID,
    FOUR,
    flow_folder,
    qwen_folder,
    student_of,
    wan_folder,
)


def flow_student(name, place):
    return student_of(name, FOUR, flow_folder(place, name))


STUDENTS = {
    "sd3": flow_student,
    "z_image": flow_student,
    "ltx": flow_student,
    "flux": flow_student,
    "qwen_image": lambda name, place: student_of(name, FOUR, qwen_folder(place)),
    "wan_2.2_a14b": lambda name, place: student_of(name, BOUNDARY_ON_GRID, wan_folder(place)),
}
MASKED = {"ltx": "prompt_attention_mask", "qwen_image": "prompt_embeds_mask"}


def arguments(student, name):
    """Returns a call's conditions, with and without the prompt, and its size."""
    condition = student.encode(student.prompts[:1])
    network = student.experts[0].denoiser
    prompt, given = condition["prompt"], {}
    if name == "z_image":
        prompt = [prompt[0][condition["mask"][0].bool()]]
        given["negative_prompt_embeds"] = [torch.zeros_like(prompt[0])]
    else:
        given["negative_prompt_embeds"] = torch.zeros_like(prompt)
    for key, argument in {"pooled": "pooled_prompt_embeds", "mask": MASKED.get(name)}.items():
        if argument and key in condition.keys():
            given |= {argument: condition[key], f"negative_{argument}": condition[key]}
    size = {k: v for k, v in network.call_arguments.items() if k != "max_sequence_length"}
    return {"prompt_embeds": prompt, **given, **size, "num_inference_steps": student.plan.nfe}


def warned(pipeline, **call):
    """Returns a call's warnings of guidance."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        pipeline(**call, output_type="latent")
    return [str(w.message) for w in said if "has its guidance within" in str(w.message)]


@pytest.mark.parametrize("name", STUDENTS)
def test_a_pipeline_that_guides_is_warned_of_once_a_call(name, tmp_path):
    from diffusers import DiffusionPipeline

    student = STUDENTS[name](name, tmp_path / "base")
    folder = export_diffusers(student, tmp_path / "out")
    absent = {"wan_2.2_a14b": {}, "qwen_image": {}}.get(name)
    if absent is None:
        index = DiffusionPipeline.load_config(folder)
        absent = {part: None for part in index if part.startswith(("text_encoder", "tokenizer"))}
    pipeline = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True, **absent)
    pipeline.set_progress_bar_config(disable=True)
    call, layout = arguments(student, name), student.experts[0].denoiser.layout
    several = "num_videos_per_prompt" if layout.output == "frames" else "num_images_per_prompt"
    assert not warned(pipeline, **call, **layout.unguided)
    if name != "ltx":  # which does not repeat embeddings
        assert not warned(pipeline, **call, **layout.unguided, **{several: 2})
    guided = {"true_cfg_scale": 3.0} if name == "flux" else {}  # the others guide by default
    ((argument, value),) = layout.unguided.items()
    for _ in range(2):
        (said,) = warned(pipeline, **call, **guided)
        assert f"pass {argument}={value:g}, as" in said
    assert (
        f"Pass `{argument}={value}`, as the lines below do" in (folder / "README.md").read_text()
    )


@pytest.mark.parametrize("unguided", [None, {}, {"true_cfg_scale": 1.0}])
def test_guidance_that_is_an_input_of_the_network_is_not_warned_of(unguided, recwarn):
    class Pipeline:
        def __init__(self, scheduler):
            self.scheduler = scheduler

        def __call__(self, guidance_scale):
            self.scheduler.set_timesteps(2)

    Pipeline(PhasedScheduler([1.0, 0.5], unguided=unguided))(guidance_scale=3.5)
    assert not recwarn.list


def test_a_scheduler_by_itself_warns_of_nothing(recwarn):
    PhasedScheduler([1.0, 0.5], unguided={"guidance_scale": 1.0}).set_timesteps(2)
    assert not recwarn.list
