"""Digests of what a configuration and its prompts name."""

import pytest

from pdmd.cli.config import DistillConfig
from pdmd.cli.config_sections.teacher import TeacherConfig
from pdmd.cli.run_inputs import digest_images, digest_inputs
from pdmd.teachers.conditioning.image_prompts import ImagePrompt
from pdmd.training.checkpoints.inputs import changed_inputs


def test_a_first_image_that_was_replaced_is_named(tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path in paths:
        path.write_bytes(path.name.encode())
    prompts = [ImagePrompt("a cat", str(path)) for path in paths]
    before = digest_images(prompts)
    assert changed_inputs(before, digest_images(prompts)) == {}
    paths[1].write_bytes(b"another")
    changed = changed_inputs(before, digest_images(prompts))
    assert changed == {"the first images": f"{paths[1]} differs"}


@pytest.mark.parametrize(
    "prompts",
    [[], [None], ["a cat", "a dog"], [ImagePrompt("a", b"bytes")], [ImagePrompt("a", "gone.png")]],
)
def test_prompts_without_files_have_no_digests(prompts):
    assert digest_images(prompts) == {}


def changed(config, path, content):
    before = digest_inputs(config)
    path.write_text(content)
    return [*changed_inputs(before, digest_inputs(config))]


def test_what_the_pipeline_of_a_single_file_and_plugins_say_is_digested(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    plugin, encoder = tmp_path / "own_plugin.py", tmp_path / "pipe" / "encoder.json"
    prompts = tmp_path / "prompts.txt"
    encoder.parent.mkdir()
    for path in (plugin, encoder, prompts):
        path.write_text("1")
    arguments = {"folder": "net.safetensors", "config": "pipe", "prompts": "~/prompts.txt"}
    teacher = TeacherConfig(name="wan", arguments=arguments, plugins=("own_plugin", "absent"))
    config = DistillConfig(teacher=teacher)
    assert changed(config, plugin, "1") == []
    assert changed(config, plugin, "2") == ["teacher.plugins.0"]
    assert changed(config, encoder, "2") == ["teacher.arguments.config"]
    assert changed(config, prompts, "2") == ["teacher.arguments.prompts"]
