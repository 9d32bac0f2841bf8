"""Reading prompts from text files, JSON lines, tables and data sets."""

import json

import pytest

from pdmd.teachers.conditioning.prompt_files import read_prompts


def write(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return str(path)


def test_text_files_and_json_lines(tmp_path):
    text = tmp_path / "prompts.txt"
    text.write_text("a cat\n\n  a dog \r\n猫\n", encoding="utf-8")
    assert read_prompts(str(text)) == ["a cat", "a dog", "猫"]
    assert read_prompts(f"file://{text}", limit=1) == ["a cat"]
    rows = [{"text": "a", "other": "b"}, {"prompt": "c", "text": "d", "other": ""}]
    lines = write(tmp_path / "prompts.jsonl", rows)
    assert read_prompts(lines) == ["a", "c"]
    assert read_prompts(lines, column="text") == ["a", "d"]
    assert read_prompts(lines, column="other", limit=2) == ["b"]


def test_prompts_on_other_file_systems(tmp_path):
    import fsspec

    with fsspec.open(f"memory://{tmp_path.name}/prompts.txt", "w") as file:
        file.write("one\ntwo\n")
    assert read_prompts(f"memory://{tmp_path.name}/prompts.txt") == ["one", "two"]


def test_files_joined_from_files_with_byte_order_marks(tmp_path):
    text, lines = tmp_path / "p.txt", tmp_path / "p.jsonl"
    text.write_bytes(2 * "a cat\r\n".encode("utf-8-sig"))
    lines.write_bytes(2 * '{"prompt": "a cat"}\n'.encode("utf-8-sig"))
    assert read_prompts(str(text)) == read_prompts(str(lines)) == ["a cat", "a cat"]


@pytest.mark.parametrize("limit", [0, 2])
def test_data_sets_and_tables(tmp_path, monkeypatch, limit):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    rows = [{"caption": f"c{i}", "text": f"t{i}"} for i in range(4)]
    folder = tmp_path / "captions"
    folder.mkdir()
    write(folder / "train.jsonl", rows)
    write(folder / "validation.jsonl", [{"caption": "v", "text": "w"}])
    (tmp_path / "rows.csv").write_text(
        "caption,text\n" + "".join(f"c{i},t{i}\n" for i in range(4))
    )
    count = limit or 4
    for source in (folder, tmp_path / "rows.csv"):
        read = read_prompts(str(source), limit=limit)
        assert read == [f"t{i}" for i in range(count)]
        read = read_prompts(str(source), column="caption", limit=limit)
        assert read == [f"c{i}" for i in range(count)]
    assert read_prompts(str(folder), split="validation") == ["w"]


@pytest.mark.parametrize(
    ("name", "content", "more", "named"),
    [
        ("p.txt", "\n \n", {}, "p.txt has no prompts"),
        ("p.txt", b"\xff\xfe", {}, "is not UTF-8 text"),
        ("p.txt", "a cat\n".encode("utf-16"), {}, "is not UTF-8 text"),
        ("p.txt", "a cat\n".encode("utf-16-le"), {}, r"prompt 1 of .* has the character U\+0000"),
        ("p.jsonl", '{"text": "a"}\n{"text": "\\ud83d"}', {}, r"prompt 2 .* character U\+D83D"),
        ("p.jsonl", '{"prompt": "a"}\n"b"\n', {}, "line 2 of .* is not a JSON object"),
        ("p.jsonl", "{", {}, "line 1 of .* is not a JSON object"),
        ("p.jsonl", '{"a": 1, "b": 2}', {}, "row 1 .* neither 'prompt' nor 'text' but 'a', 'b'"),
        ("p.jsonl", '{"a": 1}', {"column": "b"}, "no column 'b' but 'a'; name one .*--column"),
        ("p.jsonl", '{"text": 5}', {}, "prompt 1 of .* must be a text, got 5"),
        ("gone.txt", None, {}, "gone.txt does not exist"),
        ("gone", None, {}, "gone could not be read as a data set"),
        ("p.csv", "text\na\n", {"split": "test"}, "p.csv is one file and has no split 'test'"),
        ("p.csv", "text\na, b\n", {}, "row 1 of .*p.csv has more cells than columns; quote"),
        ("p.csv", "text,n\na,1\nb\n", {}, "row 2 of .*p.csv has fewer cells"),
        ("p.csv", 'text\n"a" b\n', {}, "line 2 of .*p.csv is not that of a table"),
        ("p.csv", "text\nçé\n".encode("cp1252"), {}, "p.csv is not UTF-8 text"),
        ("p.csv", "text\n", {}, "p.csv has no prompts"),
        ("p.tsv", "Prompt\tn\na\t1\n", {}, "row 1 of .* has neither .* but 'Prompt', 'n'"),
        ("p.yaml", "- a cat\n", {}, r"not read from \.yaml files, .* one prompt per line"),
        ("p.xlsx", b"PK", {}, r"not read from \.xlsx files"),
    ],
)
def test_invalid_sources_raise(tmp_path, monkeypatch, name, content, more, named):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=named):
        read_prompts(str(path), **more)


def test_every_cell_of_a_separated_table_is_a_text(tmp_path):
    path = tmp_path / "p.csv"
    path.write_bytes(b'\xef\xbb\xbftext\r\nNA\r\n"a, ""b""\nc"\r\n\r\n1984\r\n" "\r\nnull\r\n')
    assert read_prompts(str(path)) == ["NA", 'a, "b"\nc', "1984", "null"]
    path = tmp_path / "parti.tsv"
    path.write_text('Prompt\tCategory\na sign, "Hi"\tText\n')
    assert read_prompts(str(path), column="Prompt") == ['a sign, "Hi"']


@pytest.mark.parametrize("suffix", ["jsonl", "ndjson", "jsonlines", "jl"])
def test_json_lines_have_several_suffixes(tmp_path, suffix):
    path = tmp_path / f"p.{suffix}"
    path.write_text('{"prompt": "a cat"}\n')
    assert read_prompts(str(path)) == ["a cat"]


def test_a_file_with_another_suffix_is_a_text_file(tmp_path):
    path = tmp_path / "my.list"
    path.write_text("one\n\ntwo\n")
    assert read_prompts(str(path)) == ["one", "two"]


@pytest.mark.parametrize("limit", [0, 1])
def test_data_files_of_a_data_set_are_not_on_file_systems_that_run_code(
    tmp_path, monkeypatch, limit
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    run = "{{ cycler.__init__.__globals__.os.mkdir('%s') }}" % (tmp_path / "ran")
    spec = {"version": 1, "templates": {"f": run}, "refs": {"a.csv": ["{{f}}"], "b.csv": "text"}}
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n"
        f"    path: reference://a.csv::{tmp_path}/spec.json\n---\n"
    )
    with pytest.raises(ValueError, match="could not be read as a data set"):
        read_prompts(str(folder), limit=limit)
    assert not (tmp_path / "ran").exists()
