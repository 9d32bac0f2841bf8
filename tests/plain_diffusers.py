"""Runs pipelines in a process that has diffusers and not this library.

``python plain_diffusers.py CASES.json``: loads every case's folder, calls the pipeline with the
case's tensors and writes the result beside them; then runs the lines of its model card.
"""

import importlib
import json
import os
import re
import sys
from pathlib import Path


class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "pdmd":
            raise ModuleNotFoundError(f"{name} is blocked here")


sys.meta_path.insert(0, Blocker())


def snippet(folder):
    return re.search(r"```python\n(.*?)```", (Path(folder) / "README.md").read_text(), re.S)[1]


def run_snippet(folder, size):
    """Runs the card's lines in its folder and returns what they name."""
    here = os.getcwd()
    os.chdir(folder)
    try:
        scope = {}
        exec(snippet("."), scope)
    finally:
        os.chdir(here)
    return scope


def main(path):
    import torch
    from diffusers import DiffusionPipeline
    from safetensors.torch import load_file, save_file

    torch.set_num_threads(1)
    for case in json.loads(Path(path).read_text()):
        more = {"trust_remote_code": True} if case["trust"] else {}
        more["torch_dtype"] = getattr(torch, case.get("dtype", "float32"))
        pipe = DiffusionPipeline.from_pretrained(case["folder"], **more)
        pipe.set_progress_bar_config(disable=True)
        if case.get("again"):
            pipe.save_pretrained(case["again"])
            pipe = DiffusionPipeline.from_pretrained(case["again"], **more)
            pipe.set_progress_bar_config(disable=True)
        exec(case.get("before", ""), {"pipe": pipe})
        tensors = load_file(case["inputs"])
        with torch.no_grad():
            torch.manual_seed(7)
            out = pipe(**tensors, **case["call"], output_type="latent")
        save_file({"out": out[0].contiguous().float()}, case["out"])
        if case.get("card"):
            scope = run_snippet(case["folder"], case["card"])
            result = scope[case["card"]]
            facts = {
                "class": type(scope["pipe"]).__name__,
                "transformer": type(scope["pipe"].transformer).__name__,
                "results": len(result),
            }
            Path(case["out"]).with_suffix(".json").write_text(json.dumps(facts))


if __name__ == "__main__":
    try:
        importlib.import_module("pdmd")
    except ModuleNotFoundError:
        main(sys.argv[1])
        print("without pdmd")
