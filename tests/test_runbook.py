"""The commands of the runbook, run in order at tiny size."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from pdmd.cli.main import main
from pdmd.teachers.families.tiny.pipelines import TINY, write_tiny_pipeline

PAGE = Path(__file__).parents[1] / "docs" / "runbook.md"
COMMAND = re.compile(r"^\$ (?:torchrun .* -m )?(pdmd .*)$", re.MULTILINE)
SECTIONS = {
    "qwen_image": ("# Distill Qwen-Image on eight GPUs", "## Wan2.2 on eight GPUs"),
    "wan": ("## Wan2.2 on eight GPUs", None),
}


def section(name):
    first, last = SECTIONS[name]
    text = PAGE.read_text().split(first)[1]
    return text.split(last)[0] if last else text


def tiny_words(words, folder):
    """Returns a command's words with tiny networks in place of the released ones."""
    command, *rest = words
    if command == "embed":
        hub = next(i for i, word in enumerate(rest) if word == "folder") + 1
        rest[hub] = str(folder)
        rest += ["--no-progress"]
    elif command == "distill" and "--resume" in rest:
        rest += ["--no-progress"]
    elif command == "distill":
        preset, own = rest[0], rest[1:]
        if "--tiny" not in own:  # the run of the page, over the store that was embedded
            name = {"qwen_image": "qwen_image", "wan22_t2v": "wan"}[preset]
            own = ["--tiny", "--out", f"runs/{preset}"]
            own += ["--teacher.arguments.embeddings", f"embeddings/{name}"]
        rest = [preset, *own, "--no-progress"]
    elif command == "evaluate":
        rest[rest.index("--samples") + 1] = "100"
        rest[rest.index("--teacher-steps") + 1] = "2"
    return [command, *rest]


def run_plainly(name, snippet, place):
    """Runs the page's Python at tiny size, in a process that cannot import this library."""
    options = dict(TINY[name].options)
    if "frames" in options:
        options["num_frames"] = options.pop("frames")
    snippet = re.sub(r"^size = .*$", f"size = {options}", snippet, flags=re.M)
    snippet = snippet.replace("torch.bfloat16", "torch.float32")
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\nsys.modules['pdmd'] = None\n{snippet}"],
        env={**os.environ, "HF_MODULES_CACHE": str(place / "modules"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        cwd=place,
    )
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SECTIONS)
def test_the_commands_of_the_runbook_run_in_order(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = write_tiny_pipeline(name, tmp_path / "released")
    lists = PAGE.parents[1] / "pdmd/teachers/conditioning/prompt_lists/validation_prompts.txt"
    (tmp_path / "prompts.txt").write_text(lists.read_text())
    lines = [line.split("  #")[0] for line in COMMAND.findall(section(name))]
    if name == "qwen_image":
        assert {"recipes", "doctor"} < {line.split()[1] for line in lines}
    assert len(lines) >= 9
    for line in lines:
        words = tiny_words(shlex.split(line)[1:], folder)
        wanted = (0, 1) if words[0] == "doctor" else (0,)  # random networks have findings
        assert main(words) in wanted, line
    (snippet,) = re.findall(r"^```\{code-block\} python\n(.*?)^```$", section(name), re.M | re.S)
    run_plainly(name, snippet, tmp_path)
