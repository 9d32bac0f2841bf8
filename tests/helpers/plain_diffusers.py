"""Runs pipelines in a process with diffusers and without this library.

``python plain_diffusers.py CASES.json``: loads every case's folder, calls the pipeline with the
case's tensors and writes the result beside them; then runs the lines of its model card.
"""

import importlib
import json
import os
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

from PIL import Image


class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "pdmd":
            raise ModuleNotFoundError(f"{name} is blocked here")


sys.meta_path.insert(0, Blocker())


def snippet(folder):
    return re.search(r"```python\n(.*?)```", (Path(folder) / "README.md").read_text(), re.S)[1]


def run_lines(lines, folder):
    """Runs a card's lines in its folder and returns their variables."""
    here = os.getcwd()
    os.chdir(folder)
    try:
        scope = {}
        exec(lines, scope)
    finally:
        os.chdir(here)
    return scope


def absent(folder):
    """Returns the components that the tiny pipelines lack and the released ones have."""
    index = json.loads((Path(folder) / "model_index.json").read_text())
    return {name: None for name, value in index.items() if value == [None, None]}


def clean_texts():
    """Lets image to video clean texts where ftfy, which it does not require, is missing."""
    from diffusers.pipelines.wan import pipeline_wan_i2v

    if not hasattr(pipeline_wan_i2v, "ftfy"):
        pipeline_wan_i2v.ftfy = SimpleNamespace(fix_text=str)


def load(case, torch):
    from diffusers import DiffusionPipeline

    if case["files"]:  # LoRA files: the card's lines, except the call and the folder
        lines = re.sub(r"\n(images|frames) = pipe\(.*", "", snippet(case["folder"]), flags=re.S)
        lines = re.sub(r'folder = "\S+"', f'folder = "{case["files"]}"', lines)
        base = re.search(r'from_pretrained\("(\S+)", ', lines)[1]
        lines = lines.replace("torch_dtype", f"**{absent(base)}, torch_dtype")
        return run_lines(lines, case["folder"])["pipe"]
    more = {"trust_remote_code": True} if case["trust"] else {}
    more |= absent(case["folder"])
    more["torch_dtype"] = getattr(torch, case["dtype"])
    pipe = DiffusionPipeline.from_pretrained(case["folder"], **more)
    if case["again"]:
        pipe.save_pretrained(case["again"])
        pipe = DiffusionPipeline.from_pretrained(case["again"], **more)
    exec(case["before"], {"pipe": pipe})
    return pipe


def main(path):
    import torch
    from safetensors.torch import load_file, save_file

    torch.set_num_threads(1)
    for case in json.loads(Path(path).read_text()):
        pipe = load(case, torch)
        pipe.set_progress_bar_config(disable=True)
        tensors = load_file(case["inputs"])
        if case["ragged"]:
            masks = tensors.pop("prompt_embeds_mask")
            rows = zip(tensors["prompt_embeds"], masks, strict=True)
            tensors["prompt_embeds"] = [row[mask.bool()] for row, mask in rows]
        if case["image"]:
            clean_texts()
            tensors["image"] = Image.open(case["image"])
            shutil.copy(case["image"], Path(case["folder"]) / "image.png")
        with torch.no_grad():
            torch.manual_seed(7)
            out = pipe(**tensors, **case["call"], output_type="latent")
        save_file({"out": out[0].contiguous().float()}, case["out"])
        facts = {"class": type(pipe).__name__, "transformer": type(pipe.transformer).__name__}
        if case["card"]:
            scope = run_lines(snippet(case["folder"]), case["folder"])
            facts["results"] = len(scope[case["card"]])
        Path(case["out"]).with_suffix(".json").write_text(json.dumps(facts))


if __name__ == "__main__":
    try:
        importlib.import_module("pdmd")
    except ModuleNotFoundError:
        main(sys.argv[1])
        print("without pdmd")
