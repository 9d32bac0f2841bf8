"""The pages run, and agree with the package and with their results files."""

import ast
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import pdmd

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [p for p in sorted(DOCS.rglob("*.md")) if "```python" in p.read_text()]


def shortened(distill):
    """Returns `distill` with one update of small batches."""

    def short(*args, **settings):
        settings["updates"] = 1
        settings["rollouts"] = pdmd.Rollouts(batch_size=8)
        settings["fake_scores"] = pdmd.FakeScoreTraining(updates=1)
        return distill(*args, **settings)

    return short


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pdmd, "distill", shortened(pdmd.distill))
    if "runs/digits/student" in page.read_text():
        teacher = pdmd.teachers.get("digits")()
        source = {"teacher": "digits", "arguments": {}}
        plan = pdmd.PhasePlan.uniform(4)
        pdmd.distill(teacher, plan, source=source).save("runs/digits/student")
    namespace = {}
    blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    assert blocks
    for block in blocks:
        exec(compile(block, str(page), "exec"), namespace)


TOML = [p for p in sorted(DOCS.rglob("*.md")) if "```toml" in p.read_text()]


@pytest.mark.parametrize("page", TOML, ids=lambda p: p.stem)
def test_the_configurations_of_a_page_are_configurations(page):
    from pdmd.cli.config_files import read_config

    blocks = re.findall(r"^```toml\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    for block in blocks:
        read_config(tomllib.loads(block)).check()


COMMANDS = [
    (page, line)
    for page in [*sorted(DOCS.rglob("*.md")), ROOT / "README.md"]
    for line in re.findall(r"^\$ (?:torchrun .* -m )?(pdmd .*)$", page.read_text(), re.MULTILINE)
]


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=lambda v: getattr(v, "stem", None))
def test_the_commands_of_a_page_are_valid(page, line, capsys, monkeypatch, tmp_path):
    from pdmd.cli.main import main

    command, *words = shlex.split(line.split("  #")[0])[1:]
    if command == "distill":  # parsed as written, without the run
        seen = []
        monkeypatch.setattr(
            "pdmd.cli.distill._run", lambda config, options: seen.append(config) or 0
        )
        toml = [i for i, word in enumerate(words) if word.endswith(".toml")]
        for i in toml:
            (tmp_path / "my.toml").write_text("[plan]\nphases = 2\n")
            words[i] = str(tmp_path / "my.toml")
        for i, word in enumerate(words):
            if words[i - 1 : i] == ["--resume"] and word.startswith("runs/"):
                (tmp_path / "a").mkdir()
                (tmp_path / "a" / "config.toml").write_text("[plan]\nphases = 2\n")
                words[i] = str(tmp_path / "a")
        assert main([command, *words]) == 0 and len(seen) == 1
    else:
        options = [word for word in words if word.startswith("--")]
        options = [re.sub(r"^--arguments\..+", "--arguments", option) for option in options]
        assert main([command, "--help-all" if command == "plan" else "--help"]) == 0
        printed = capsys.readouterr().out
        assert all(option in printed for option in options)


def run_script(*words):
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("script", ["make.py", "plan_table.py"])
def test_pages_agree_with_their_results_files(script):
    done = run_script(f"docs/evidence/{script}", "--check")
    assert done.returncode == 0, done.stderr


def test_the_searches_list_the_trials_that_their_notes_name():
    done = run_script("docs/evidence/search.py")
    assert done.returncode == 0, done.stderr
    trials = done.stdout.split()
    notes = "".join(path.read_text() for path in (DOCS / "evidence").glob("*_notes.md"))
    named = set(re.findall(r"\b(adaptive_\.\w+|digits/\w+)", notes))
    assert named and named <= set(trials)


API = {page: page.read_text() for page in sorted((DOCS / "api").glob("*.md"))}
LISTED = {page: re.findall(r"automodule:: ([\w.]+)", text) for page, text in API.items()}


def public_names(module):
    """Returns the names in the ``__all__`` of a module that is not imported."""
    path = ROOT / module.replace(".", "/")
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return ast.literal_eval(node.value)
    return []


def test_the_api_pages_have_every_module_once():
    packages = {"pdmd.conformance"}  # defines `check`
    excluded = ROOT / "pdmd/export/modules"  # templates that exported pipelines contain
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in (ROOT / "pdmd").rglob("*.py")
        if not path.name.startswith("__") and excluded not in path.parents
    }
    listed = [module for page in LISTED.values() for module in page]
    missing = (modules | packages) - set(listed)
    assert not missing, "list new modules on a page of docs/api"
    assert sorted(listed) == sorted(modules | packages)


def test_an_api_page_says_when_to_use_it_shows_an_example_and_ends():
    for page, text in API.items():
        assert re.match(r"# .+\n\n[A-Z][^`#|]", text), page
        if page.stem != "index":
            start, *_ = text.split("\n## ")
            assert "```python\n" in start, page
            assert sum(len(public_names(module)) for module in LISTED[page]) <= 60, page


def test_the_api_links_every_name_that_pdmd_has_itself():
    linked = set(re.findall(r"`~pdmd[\w.]*\.(\w+)`", API[DOCS / "api/index.md"]))
    modules = set(re.findall(r"`pdmd\.(\w+)`", API[DOCS / "api/index.md"]))
    assert linked | modules == set(pdmd.__all__)


LAUNCH = sorted((ROOT / "examples" / "launch").iterdir())


@pytest.mark.parametrize("script", LAUNCH, ids=lambda p: p.name)
def test_launch_scripts_parse(script):
    done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
