"""A text that is longer than an encoder takes is told of, and leaves the others of its batch."""

import warnings

import pytest
import torch

from pdmd.teachers.base import teachers
from pdmd.teachers.conditioning.cut_texts import note_cut_texts, noting_cut_texts
from pdmd.teachers.conditioning.prompts import EncodedText
from pdmd.teachers.families.tiny.pipelines import TINY, write_tiny_pipeline

LONG = "a very long story " * 300
TOLD = "the text encoder takes fewer tokens than 'a very long story"
FAMILIES = [  # of texts alone; the templates of the last are longer than what it takes
    name for name in TINY if name not in ("wan_i2v", "qwen_image_edit", "kandinsky5")
]


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    place = tmp_path_factory.mktemp("cut")
    return request.param, write_tiny_pipeline(request.param, place / "pipeline")


def encoder_of(name, folder):
    teacher = teachers[name](folder=str(folder), dtype="float32", **TINY[name].options)
    part = teacher.routed.denoisers[0] if hasattr(teacher, "routed") else teacher
    return part.text


def test_the_first_text_that_is_cut_is_warned_of(folder):
    encoder = encoder_of(*folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        alone = encoder.encode(["a cat", None])
    with pytest.warns(UserWarning, match=TOLD) as told:
        beside = encoder.encode(["a cat", LONG, LONG[:-2]])
        encoder.encode([LONG])
    assert len([w for w in told if "fewer tokens" in str(w.message)]) == 1
    kept = alone["mask"][0] if "mask" in alone.keys() else slice(None)
    width = alone["prompt"].shape[1]
    torch.testing.assert_close(
        beside["prompt"][0, :width][kept], alone["prompt"][0][kept], rtol=1e-4, atol=1e-5
    )
    if "mask" in alone.keys():
        assert beside["mask"][0].sum() == alone["mask"][0].sum()


class Tokenizer:
    """Cuts texts at a number of characters, as the tokenizers of transformers tell."""

    is_fast = True

    def __init__(self, most):
        self.most = most

    def __call__(self, texts, truncation=False):
        cut = [truncation and len(text) > self.most for text in texts]
        encodings = [type("Encoding", (), {"overflowing": [1] * c}) for c in cut]
        return type("Tokens", (), {"encodings": encodings})


class Pipeline:
    def __init__(self, *most):
        for i, number in enumerate(most):
            setattr(self, f"tokenizer_{i}", Tokenizer(number))

    def encode(self, texts):
        for tokenizer in vars(self).values():
            tokenizer(texts)
            tokenizer(texts, truncation=True)


@pytest.mark.parametrize(("most", "cut"), [((4,), ["12345"]), ((4, 8), []), ((), [])])
def test_a_text_is_cut_if_no_tokenizer_keeps_its_end(most, cut):
    pipeline, texts = Pipeline(*most), ["123", "12345"]
    with noting_cut_texts(pipeline, texts) as found:
        pipeline.encode(texts)
    assert found == cut
    assert all(type(tokenizer) is Tokenizer for tokenizer in vars(pipeline).values())


def test_the_tokenizer_is_as_before_where_encoding_fails():
    pipeline = Pipeline(4)
    with pytest.raises(ZeroDivisionError), noting_cut_texts(pipeline, ["12345"]):
        raise ZeroDivisionError
    assert type(pipeline.tokenizer_0) is Tokenizer
    note_cut_texts(["outside of a block"])


def test_the_null_prompt_is_not_one_of_the_user(recwarn):
    pipeline = Pipeline(4)

    def embed(pipeline, texts):
        from tensordict import TensorDict

        pipeline.encode(texts)
        return TensorDict({"prompt": torch.zeros(len(texts), 1, 1)}, batch_size=[len(texts)])

    encoder = EncodedText(lambda: pipeline, embed, null="long null text")
    encoder.encode([None])
    assert not recwarn.list
    with pytest.warns(UserWarning, match="fewer tokens than 'long text'"):
        encoder.encode([None, "long text"])
