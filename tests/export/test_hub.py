"""The hub: what is uploaded, its card, and students that are read from the hub's cache."""

import json
import re
import shutil

import pytest
import torch

from pdmd import PhasePlan, Student
from pdmd.cli.main import main
from pdmd.distillation.hub_students import fetch_student
from pdmd.export.atomic_export import atomic_folder
from pdmd.export.hub import files_to_push, student_card
from tests.helpers.small_runs import untrained_student, weights

hub = pytest.importorskip("huggingface_hub")


@pytest.fixture
def run(tmp_path):
    """A run's folder, with a student and files of a run."""
    folder = tmp_path / "run"
    untrained_student().save(folder / "student")
    rows = [
        {"method": "teacher", "nfe": 50, "sw2": 0.1},
        {"method": "student", "nfe": 2, "sw2": 0.2},
    ]
    (folder / "metrics.json").write_text(json.dumps({"rows": rows}))
    (folder / "report.html").write_text("<p>report</p>")
    (folder / "history.jsonl").write_text("{}")
    (folder / "grids").mkdir()
    (folder / "grids" / "samples.png").write_bytes(b"picture")
    return folder


def cached(cache, student, name="somebody/few"):
    """Puts a student into a cache as the hub's client lays it out: links to blobs."""
    repository = cache / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / ("0" * 40)
    for part in (snapshot, repository / "blobs", repository / "refs"):
        part.mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    for path in student.iterdir():
        blob = repository / "blobs" / path.name
        shutil.copy(path, blob)
        (snapshot / path.name).symlink_to(blob)
    return snapshot


def test_a_dry_run_lists_files_and_sizes_without_a_network(run, capsys, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *words: pytest.fail("used the network"))
    assert main(["push", str(run), "somebody/few", "--dry-run"]) == 0
    *rows, total = capsys.readouterr().out.splitlines()
    listed = [row.split()[0] for row in rows]
    expected = ["README.md", "student.json", "expert_1.safetensors", "expert_2.safetensors"]
    assert listed == [*expected, "metrics.json", "report.html", "samples/samples.png"]
    assert "7 files of" in total and "somebody/few" in total
    assert rows[-1].split()[1:] == ["7", "B"]


def test_the_card_says_how_to_load_and_where_it_does_not(run):
    (card,) = [
        f.content.decode() for f in files_to_push(run, "somebody/few") if f.path == "README.md"
    ]
    assert card.startswith("---\n") and "library_name: pdmd" in card and "# few" in card
    assert 'pdmd.Student.from_pretrained("somebody/few")' in card
    assert "does not load in stock diffusers" in card and "2 network evaluations" in card
    assert "| student | 2 | 0.200 |" in card and "![samples](samples/samples.png)" in card
    assert "| 1 | 1 to 0.5 |" in card and str(run) not in card


def card_of(**source):
    content = {"source": source or None}
    return student_card(content, PhasePlan.uniform(2), "somebody/few")


def test_the_card_says_which_teacher_and_guidance_it_needs(tmp_path):
    named = card_of(teacher="digits", guidance=[1.0])
    assert "A student of `digits`, distilled" in named and "Guidance" not in named
    both = card_of(teacher="wan", guidance=[4.0, 3.0], arguments={"folder": "somebody/video"})
    assert "`wan` (guidance 4, 3)" in both and "sample without" in both
    assert "base_model: somebody/video" in both and "teacher=teacher" not in both
    unnamed, local = card_of(), card_of(teacher="wan", arguments={"folder": str(tmp_path)})
    for card in (unnamed, local):  # nobody else can build the teacher from its name
        assert 'from_pretrained("somebody/few", teacher=teacher)' in card
        assert "pass the one that it was distilled from" in card and str(tmp_path) not in card
    assert "a teacher that has no registered name" in unnamed


def test_texts_of_others_in_a_card_stay_texts():
    content = {"source": {"teacher": "`<b>x\n# y", "arguments": {"folder": "<b>/x"}}}
    rows = [{"method | <i>": "a | b\n<script>", "nfe": 2}]
    plan, picture = PhasePlan.uniform(2), "samples/phase_1](javascript:x).png"
    card = student_card(content, plan, "a/b", rows=rows, pictures=[picture])
    assert r"of \`\<b\>x \# y, distilled" in card and "base_model" not in card
    assert r"| method \| \<i\> | nfe |" in card and r"| a \| b \<script\> | 2 |" in card
    assert r"![phase_1\](javascript:x)](samples/phase_1%5D%28javascript%3Ax%29.png)" in card


def test_a_push_is_one_commit_of_what_was_listed(run, monkeypatch, capsys):
    made = []

    class Api:
        def __init__(self, **settings):
            made.append(settings)

        def create_repo(self, name, *, private, exist_ok):
            made.append((name, private, exist_ok))

        def create_commit(self, name, *, operations, commit_message):
            made.append([operation.path_in_repo for operation in operations])
            return type("Done", (), {"commit_url": f"https://hub/{name}/commit/1"})

    monkeypatch.setattr(hub, "HfApi", Api)
    assert main(["push", str(run), "somebody/few", "--private"]) == 0
    assert made[1] == ("somebody/few", True, True)
    assert made[2] == [file.path for file in files_to_push(run, "somebody/few")]
    assert "https://hub/somebody/few/commit/1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["push", "nowhere", "a/b"], "neither a run, nor a student, nor an export"),
        (["push", "nowhere"], "missing the name on the hub"),
        (["push", "nowhere", "just_a_name"], "user/name, got 'just_a_name'"),
    ],
)
def test_what_cannot_be_pushed_is_named(words, named, capsys):
    assert main(words) == 2
    assert named in capsys.readouterr().err


CONTENT = {
    "README.md": "card",
    "model_index.json": "{}",
    "transformer/config.json": "{}",
    "transformer/weights.safetensors": "weights",
}


def fill(folder):
    for name, text in CONTENT.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def exported(tmp_path):
    """An export's folder, with what others put into it."""
    folder = tmp_path / "out"
    with atomic_folder(folder, overwrite=False) as draft:
        fill(draft)
    (tmp_path / "secret").write_text("SECRET")
    (folder / ".env").write_text("TOKEN")
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "code.pyc").write_text("bytes")
    (folder / "notes.txt").symlink_to(tmp_path / "secret")
    return folder


def test_of_an_export_only_what_it_wrote_is_pushed(exported, capsys):
    (exported / "README.md").write_text("an edited card")
    found = [file.path for file in files_to_push(exported, "a/b")]
    assert found == sorted([*CONTENT, "pdmd_export.json"])
    assert main(["push", str(exported), "a/b", "--dry-run"]) == 0
    left = [row for row in capsys.readouterr().out.splitlines() if row.startswith("left out")]
    named = ".env, __pycache__/code.pyc, notes.txt"
    assert left == [f"left out, as no export wrote them: {named}"]


def test_of_a_pipeline_without_a_list_nothing_hidden_is_pushed(tmp_path):
    folder = fill(tmp_path / "pipeline")
    for name in (".git/config", "transformer/.cache", "__pycache__/code.pyc"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("hidden")
    assert [file.path for file in files_to_push(folder, "a/b")] == sorted(CONTENT)


@pytest.mark.parametrize("name", ["transformer/weights.safetensors", "model_index.json"])
@pytest.mark.parametrize("listed", [True, False])
def test_links_out_of_an_export_are_not_followed(exported, tmp_path, name, listed):
    folder = exported if listed else fill(tmp_path / "pipeline")
    (folder / name).unlink()
    (folder / name).symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match=f"links to files outside of it: {name}; replace"):
        files_to_push(folder, "a/b")


@pytest.mark.parametrize("name", ["student/expert_1.safetensors", "grids/samples.png"])
def test_links_out_of_a_run_are_not_followed(run, tmp_path, name):
    (run / name).rename(tmp_path / "elsewhere")
    (run / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=f"links to files outside of it: {name}; replace"):
        files_to_push(run, "a/b")


def test_a_student_of_the_hubs_cache_is_pushed(tmp_path, run):
    snapshot = cached(tmp_path / "cache", run / "student")
    found = [file.path for file in files_to_push(snapshot, "a/b")]
    assert found == ["README.md", "student.json", "expert_1.safetensors", "expert_2.safetensors"]


def test_damaged_weights_are_not_pushed(exported, run, capsys):
    for path in (
        exported / "transformer" / "weights.safetensors",
        run / "student" / "expert_2.safetensors",
    ):
        path.write_bytes(path.read_bytes()[:-1])
        folder = exported if exported in path.parents else run
        assert main(["push", str(folder), "a/b", "--dry-run"]) == 2
        said = capsys.readouterr()
        assert f"{path} is damaged: its checksum" in said.err and not said.out


@pytest.mark.parametrize("name", ["pdmd_export.json", "student.json"])
def test_changed_descriptions_are_not_pushed(exported, run, name):
    path = next(p for folder in (exported, run) for p in folder.rglob(name))
    path.write_text(json.dumps({**json.loads(path.read_text()), "note": "more"}))
    with pytest.raises(ValueError, match=f"{name} is damaged .*changed after it was written"):
        files_to_push(exported if name == "pdmd_export.json" else run, "a/b")


@pytest.mark.parametrize(
    ("name", "named"),
    [("../secret", "outside of it; export again"), ("gone", "gone is missing; export again")],
)
def test_a_list_of_other_files_is_not_followed(exported, name, named):
    (exported / "pdmd_export.json").write_text(json.dumps({"format": 1, "files": [name]}))
    with pytest.raises(ValueError, match=named):
        files_to_push(exported, "a/b")


def test_a_student_is_read_from_the_hubs_cache(tmp_path, run, monkeypatch):
    snapshot = cached(tmp_path / "cache", run / "student")

    def fetched(name, *, revision, allow_patterns):
        assert allow_patterns == ["student.json", "expert_*.safetensors"]
        assert (name, revision) == ("somebody/few", "main")
        return str(snapshot)

    monkeypatch.setattr(hub, "snapshot_download", fetched)
    student = Student.from_pretrained("somebody/few", revision="main")
    assert torch.equal(weights(student), weights(untrained_student()))
    assert student.source["teacher"] == "mixture"
    own = Student.from_pretrained(run / "student")  # a folder comes first
    assert torch.equal(weights(own), weights(student))
    with pytest.raises(ValueError, match="neither a student folder nor a name on the hub"):
        Student.from_pretrained("nowhere")
    (snapshot / "student.json").unlink()
    with pytest.raises(ValueError, match="no student: it has no student.json"):
        fetch_student("somebody/few", "main")


def test_a_student_of_the_hub_is_trusted_no_more_than_a_folder(tmp_path, run, monkeypatch):
    path = run / "student" / "student.json"
    content = json.loads(path.read_text())
    content["source"]["arguments"]["folder"] = "https://somewhere.example/weights"
    content.pop("sha256", None)
    path.write_text(json.dumps(content))
    snapshot = cached(tmp_path / "cache", run / "student")
    monkeypatch.setattr(hub, "snapshot_download", lambda *words, **settings: str(snapshot))
    with pytest.raises(ValueError) as caught:
        Student.from_pretrained("somebody/few")
    assert re.search("trust", str(caught.value)) and "somewhere.example" in str(caught.value)
