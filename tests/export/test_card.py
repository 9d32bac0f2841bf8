"""Cards: the sizes that a student was trained on, and texts of others, which stay texts."""

import ast
import json

import pytest

from pdmd import PhasePlan, Student
from pdmd.distillation.buckets import Buckets
from pdmd.distillation.experts import OdeExpert
from pdmd.export.bases import open_base_pipeline
from pdmd.export.card import Card, size_notes
from pdmd.export.lora_card import LoraCard
from pdmd.export.network_schedule import network_intervals, pipeline_layout
from tests.helpers.exporting import FOUR, RANK, qwen_folder, student_of
from tests.helpers.sizes import SIZES, AnySize


def student(buckets):
    return Student([OdeExpert(AnySize(), p) for p in PhasePlan.uniform(2)], buckets=buckets)


def test_a_card_lists_the_times_of_every_size():
    _, note, table = size_notes(student(SIZES))
    assert "those of latents 2 x 4;" in note
    assert table.splitlines()[2:] == [
        "| 2 x 4 | 25% | 1, 0.5 |",
        "| 2 x 6 | 50% | 1, 0.6 |",  # 1.5 / 2 / (1 + 0.5 / 2)
        "| 2 x 3 | 25% | 1, 0.333333 |",
    ]


def test_one_size_needs_no_words():
    assert size_notes(student(Buckets.of_shape((2, 4)))) == size_notes(student(None)) == []


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    folder = qwen_folder(tmp_path_factory.mktemp("base") / "pipeline")
    return student_of("qwen_image", FOUR, folder, adapter=RANK), folder


def cards(adapted, folder):
    """Returns the cards of adapters and of a pipeline, over a base in a folder."""
    own, original = adapted
    if not (folder / "model_index.json").exists():
        folder.mkdir(exist_ok=True)
        (folder / "model_index.json").write_text((original / "model_index.json").read_text())
    intervals = network_intervals(own)
    layout = pipeline_layout(intervals)
    shared = {
        "student": own,
        "intervals": intervals,
        "layout": layout,
        "base": open_base_pipeline(own, layout, str(folder)),
        "renoises": False,
    }
    names = [f"network_{i}.safetensors" for i in range(len(intervals))]
    return (
        LoraCard(**shared, names=names, folders={"diffusers": "."}),
        Card(**shared, stock=None, ships_code=True, dtype="torch.float32"),
    )


def loaded_name(card):
    """Returns what the lines of a card load."""
    calls = [node for node in ast.walk(ast.parse(card.snippet())) if isinstance(node, ast.Call)]
    (call,) = [c for c in calls if getattr(c.func, "attr", "") == "from_pretrained"]
    return call.args[0].value


@pytest.mark.parametrize(
    "name",
    [
        'a"b',
        "a\\nb",
        'x"); print("run"); ("',
        "two\nlines",
        "<img src=x>",
        "[x](y)",
        "a|b`c",
        "a b",
    ],
)
def test_a_folders_name_is_neither_code_nor_markup(adapted, tmp_path, name):
    lora, card = cards(adapted, tmp_path / name)
    assert loaded_name(lora) == str((tmp_path / name).resolve())
    for text in (lora.text(), card.text()):
        prose = text.replace(lora.snippet(), "")
        (title,) = [line for line in prose.splitlines() if line.startswith("# ")]
        assert title.endswith(" 4 steps")
        body = prose.partition("\n---\n")[2]
        assert "<img" not in body.replace("\\<", "") and "[x]" not in body


@pytest.mark.parametrize(
    ("known", "shown"),
    [("someone/model", True), ("someone/x\n\n<script>", False), ("https://a/b", False)],
)
def test_a_hub_name_comes_before_a_local_path(adapted, tmp_path, known, shown):
    folder = tmp_path / "local"
    cards(adapted, folder)
    path = folder / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "_name_or_path": known}))
    lora, card = cards(adapted, folder)
    assert loaded_name(lora) == (known if shown else str(folder.resolve()))
    assert f"# {known if shown else 'local'} in 4 steps" in card.text()
    assert "<script>" not in card.text() + lora.text()


@pytest.mark.parametrize(
    "link", ["LICENSE.md", "https://a.example/terms?v=1", "javascript:alert(1)"]
)
def test_a_licence_of_others_stays_a_text(adapted, tmp_path, link, recwarn):
    cards(adapted, tmp_path / "base")
    name = "mine\\n\\n<script>\\n\\n[Click](javascript:x)"
    header = f'license: other\nlicense_name: "{name}"\nlicense_link: "{link}"'
    (tmp_path / "base" / "README.md").write_text(f"---\n{header}\n---\n")
    for card in cards(adapted, tmp_path / "base"):
        text = card.text()
        assert r"mine \<script\> \[Click\](javascript:x), as base" in text
        kept = "javascript" not in link
        assert (f"license_link: {link}" in text) == kept
        assert ("neither an https address" in "".join(str(w.message) for w in recwarn)) != kept
