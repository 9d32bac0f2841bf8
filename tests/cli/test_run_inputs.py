"""Digests of what a configuration and its prompts name."""

import pytest

from pdmd.cli.run_inputs import digest_images
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
