"""Students to export, their base pipelines, and a subprocess with diffusers alone."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from pdmd import PhasePlan, Student
from pdmd.distillation.adapters import LowRank, adapt, adapted_parts
from pdmd.distillation.experts import OdeExpert
from pdmd.teachers.families.wan_image import encode_image
from tests.helpers.tiny_encoders import clip_vision, picture, qwen_text, t5
from tests.helpers.tiny_families import QWEN, WAN, family, noise, qwen_pipeline, wan_pipeline
from tests.helpers.tiny_flows import FLOWS, flow

BOUNDARY_ON_GRID = PhasePlan.from_timesteps([1, 0.9375, 0.875, 0.625, 0], steps=2)
SHIFTED = PhasePlan.uniform(2, steps=2, shift=5)
UNEVEN = PhasePlan.from_timesteps([1, 0.97, 0.6, 0.31, 0], steps=[1, 2, 1])
FOUR = PhasePlan.uniform(4, shift=3)


def wan_folder(path, name="wan_2.2_a14b"):
    pipeline = wan_pipeline(family(name), text=t5(WAN["text_dim"]), expand=name == "wan_2.2_5b")
    pipeline.save_pretrained(path)
    return path


def qwen_folder(path):
    pipeline = qwen_pipeline(family("qwen_image"), text=qwen_text(QWEN["joint_attention_dim"]))
    pipeline.save_pretrained(path)
    return path


def flow_folder(path, name):
    FLOWS[name].pipeline(flow(name)).save_pretrained(path)
    return path


def image_folder(path, name):
    """Writes a pipeline of image to video, with encoders of texts and images."""
    seen = clip_vision(16) if name == "wan_i2v_2.1" else (None, None)
    FLOWS[name].pipeline(flow(name), text=(*t5(32), *seen)).save_pretrained(path)
    return path


def teacher_of(name):
    return flow(name) if name in FLOWS else family(name)


def halved(part):
    """Casts a network to bfloat16, except the weights its family keeps in float32."""
    kept = set(part.backbone._keep_in_fp32_modules or ())
    for name, parameter in part.backbone.named_parameters():
        if not kept & set(name.split(".")):
            parameter.data = parameter.data.bfloat16()
    return part


def student_of(name, plan, folder, *, expert=OdeExpert, adapter=None, half=False):
    """Returns a student whose experts all differ from their teacher."""
    teacher = teacher_of(name)
    generator = torch.Generator().manual_seed(len(plan))
    experts = []
    for phase in plan:
        if adapter is None:
            part = teacher.trainable_part(phase.t_start, phase.t_end)
            moved = list(part.parameters())
        else:
            part = adapt(teacher.part(phase.t_start, phase.t_end), adapter, seed=phase.index)
            moved = [f.lora_B.weight for a in adapted_parts(part) for f in a.factors().values()]
        part.requires_grad_(False)
        for parameter in moved:
            drawn = torch.randn(parameter.shape, generator=generator)
            scale = parameter.std(correction=0) if adapter is None else 1.0
            parameter.add_(0.1 * scale * drawn)
        experts.append(expert(halved(part) if half else part, phase))
    registered = FLOWS[name].registered if name in FLOWS else name.removesuffix("_image")
    source = {
        "teacher": {"qwen": "qwen_image"}.get(registered, registered.split("_2")[0]),
        "arguments": {"folder": str(folder)},
    }
    student = Student(experts, encode=teacher.encode, prompts=teacher.prompts, source=source)
    return student.eval()


RANK = LowRank(rank=3, alpha=6.0)


@dataclass
class Case:
    """A pipeline's folder to call in a subprocess, and the expected samples."""

    name: str
    folder: Path
    student: Any
    trust: bool = True
    steps: dict[str, Any] = field(default_factory=dict)
    atol: float = 1e-5
    card: bool = True
    again: bool = False
    dtype: str = "float32"
    before: str = ""
    files: str = ""
    """The folder of LoRA files that the card's lines load, for LoRA exports."""

    def write(self, place):
        student, teacher = self.student, self.student.experts[0].denoiser
        while not hasattr(teacher, "layout"):
            teacher = teacher.denoisers[0] if hasattr(teacher, "denoisers") else teacher.base
        layout = teacher.layout
        condition = student.encode(student.prompts)
        if layout.takes_image:
            condition = self.with_image(condition[:1], teacher, place / f"{self.name}.png")
        x = noise(student, len(condition))
        call = {**teacher.call_arguments, **layout.unguided}
        call.pop("max_sequence_length", None)
        call |= self.steps or {"num_inference_steps": student.plan.nfe}
        tensors = {"prompt_embeds": condition["prompt"]}
        names = {"pooled": "pooled_prompt_embeds", "mask": "prompt_embeds_mask"}
        if layout.pipeline == "LTXPipeline":
            names["mask"] = "prompt_attention_mask"
        for key, name in names.items():
            if key in condition.keys():
                tensors[name] = condition[key]
        torch.manual_seed(7)
        tensors["latents"] = self.arranged(layout, x)
        with torch.no_grad():
            for expert in student.experts:
                x = expert(x, condition)
        self.expected = self.arranged(layout, x)
        if layout.pipeline == "QwenImagePipeline":  # it does not cast them
            for key in ("latents", "prompt_embeds"):
                tensors[key] = tensors[key].to(getattr(torch, self.dtype))
        save_file({k: v.contiguous() for k, v in tensors.items()}, place / f"{self.name}.in")
        self.place = place / f"{self.name}.out"
        return {
            "folder": str(self.folder),
            "trust": self.trust,
            "dtype": self.dtype,
            "inputs": str(place / f"{self.name}.in"),
            "out": str(self.place),
            "call": call,
            "card": layout.output if self.card else "",
            "again": str(place / f"{self.name}_again") if self.again else "",
            "before": self.before,
            "files": self.files,
            "image": str(place / f"{self.name}.png") if layout.takes_image else "",
            "ragged": layout.pipeline == "ZImagePipeline",
        }

    def with_image(self, condition, teacher, path):
        """Returns a condition with what the base's encoders see in an image, and writes it."""
        picture(0).save(path)
        encoder = teacher.load_encoder(self.student.source["arguments"]["folder"], dtype="float32")
        with torch.no_grad():
            seen = encode_image(
                encoder, picture(0), keys=teacher.condition_keys[1:], options=teacher.options
            )
        for key, value in seen.items():
            condition[key] = value
        return condition

    @staticmethod
    def arranged(layout, x):
        """Arranges latents as the pipeline passes them to its network."""
        from diffusers import QwenImagePipeline

        if layout.pipeline in ("QwenImagePipeline", "FluxPipeline"):
            rows, channels, height, width = x.shape
            return QwenImagePipeline._pack_latents(x, rows, channels, height, width)
        return x.flatten(2).transpose(1, 2) if layout.pipeline == "LTXPipeline" else x

    def result(self):
        return load_file(self.place)["out"]

    def error(self):
        return float((self.result() - self.expected).abs().max())

    def facts(self):
        return json.loads(self.place.with_suffix(".json").read_text())


def run_in_subprocess(cases, place):
    """Runs every case's pipeline in a process that cannot import this library."""
    path = place / "cases.json"
    path.write_text(json.dumps([case.write(place) for case in cases]))
    script = Path(__file__).with_name("plain_diffusers.py")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"HF_MODULES_CACHE": str(place / "modules"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, str(script), str(path)],
        env=environment,
        capture_output=True,
        text=True,
        cwd=place,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.endswith("without pdmd\n")
    return done
