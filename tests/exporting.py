"""Students to export, their pipelines' folders, and a process that has diffusers alone."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from pdmd import PhasePlan, Student, sample
from pdmd.experts import OdeExpert
from tests.test_family_folders import qwen_text, t5
from tests.tiny_families import QWEN, WAN, family, noise, qwen_pipeline, wan_pipeline

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


def student_of(name, plan, folder, *, expert=OdeExpert, dtype=torch.float32):
    """Returns a student whose experts have all left their teacher, each its own way."""
    teacher = family(name)
    generator = torch.Generator().manual_seed(len(plan))
    made = []
    for phase in plan:
        part = teacher.trainable_part(phase.t_start, phase.t_end).requires_grad_(False)
        for parameter in part.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.1 * noise * parameter.std(correction=0))
        made.append(expert(part, phase))
    source = {"teacher": name.split("_")[0], "arguments": {"folder": str(folder)}}
    student = Student(made, encode=teacher.encode, prompts=teacher.prompts, source=source)
    return student.eval()


@dataclass
class Case:
    """A pipeline's folder to call elsewhere, and what must come out."""

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

    def write(self, place):
        from diffusers import QwenImagePipeline

        student, teacher = self.student, self.student.experts[0].denoiser
        while hasattr(teacher, "denoisers"):
            teacher = teacher.denoisers[0]
        condition = student.encode(student.prompts)
        x = noise(student, len(condition))
        call = {**teacher.call_arguments, **teacher.layout.unguided}
        call |= self.steps or {"num_inference_steps": student.plan.nfe}
        tensors = {"latents": x, "prompt_embeds": condition["prompt"]}
        if "mask" in condition.keys():
            tensors["prompt_embeds_mask"] = condition["mask"]
        torch.manual_seed(7)
        with torch.no_grad():
            for expert in student.experts:
                x = expert(x, condition)
        self.expected = x
        if teacher.layout.pipeline == "QwenImagePipeline":
            rows, channels, height, width = x.shape
            pack = QwenImagePipeline._pack_latents
            sizes = (rows, channels, height, width)
            tensors["latents"] = pack(tensors["latents"], *sizes).to(getattr(torch, self.dtype))
            self.expected = pack(x, *sizes)
        save_file({k: v.contiguous() for k, v in tensors.items()}, place / f"{self.name}.in")
        self.place = place / f"{self.name}.out"
        return {
            "folder": str(self.folder),
            "trust": self.trust,
            "dtype": self.dtype,
            "inputs": str(place / f"{self.name}.in"),
            "out": str(self.place),
            "call": call,
            "card": teacher.layout.output if self.card else "",
            "again": str(place / f"{self.name}_again") if self.again else "",
            "before": self.before,
        }

    def result(self):
        return load_file(self.place)["out"]

    def error(self):
        return float((self.result() - self.expected).abs().max())

    def facts(self):
        return json.loads(self.place.with_suffix(".json").read_text())


def run_elsewhere(cases, place):
    """Calls every case's pipeline in a process that cannot import this library."""
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


__all__ = ["Case", "run_elsewhere", "sample", "student_of"]
