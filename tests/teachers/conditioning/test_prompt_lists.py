"""The list of prompts that ships."""

from pdmd.teachers.conditioning.prompt_files import read_prompts


def test_the_validation_list_is_read_by_name_and_varied():
    prompts = read_prompts("validation_prompts")
    assert len(prompts) == len(set(prompts)) >= 190
    assert read_prompts("validation_prompts", limit=3) == prompts[:3]
    quoted = [prompt for prompt in prompts if '"' in prompt]
    assert len(quoted) >= 15 and all(prompt.count('"') == 2 for prompt in quoted)
    assert all(prompt.isascii() and prompt.endswith(".") for prompt in prompts)
    starts = [" ".join(prompt.split()[:3]) for prompt in prompts]
    assert max(map(starts.count, starts)) <= 4


def test_a_file_of_that_name_is_read_instead(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "validation_prompts").write_text("a cat\na dog\n")
    assert read_prompts("validation_prompts") == ["a cat", "a dog"]
