"""SANA: texts behind an instruction, and negative prompts without it."""

import inspect

import pytest
import torch

from pdmd.teachers.base import teachers
from pdmd.teachers.conditioning.embeddings.embedding import embed
from tests.helpers.tiny_more_flows import pipeline_of

OPTIONS = {"height": 64, "width": 64, "dtype": "float32", "meta": True}


@pytest.fixture(scope="module")
def pipeline():
    return pipeline_of("sana", text=True)


@pytest.fixture(scope="module")
def teacher(pipeline, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sana")
    pipeline.save_pretrained(folder)
    return teachers.get("sana")(folder=str(folder), **OPTIONS)


def test_prompts_have_the_instruction_and_negative_ones_have_not(pipeline, teacher):
    call = inspect.signature(type(pipeline).__call__).parameters
    prompt, mask, negative, negative_mask = pipeline.encode_prompt(
        ["a cat"],
        True,
        negative_prompt="blurry, bad",
        complex_human_instruction=call["complex_human_instruction"].default,
    )
    for own, expected, expected_mask in (
        (teacher.encode(["a cat"]), prompt, mask),
        (teacher.encode_negative("blurry, bad"), negative, negative_mask),
    ):
        kept = expected_mask[0].bool()
        assert int(own["mask"].sum()) == int(kept.sum())
        torch.testing.assert_close(own["prompt"][0][own["mask"][0]], expected[0][kept])
    assert not torch.equal(
        teacher.encode_negative("a cat")["prompt"], teacher.encode(["a cat"])["prompt"]
    )


def test_a_store_has_no_negative_prompt(teacher, tmp_path):
    store = str(tmp_path / "store")
    embed(teacher.text, ["a cat", "blurry"], store, progress=False)
    other = teachers.get("sana")(folder=str(teacher.text.folder), embeddings=store, **OPTIONS)
    with pytest.raises(ValueError, match="encoded without the instruction"):
        other.encode_negative("blurry")
