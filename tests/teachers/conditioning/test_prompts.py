"""Prompts: encoded by a text encoder, or looked up among precomputed embeddings."""

import pytest
import torch
from tensordict import TensorDict

from pdmd import MixtureTeacher, MlpDenoiser, OdeExpert, PhasePlan, Student
from pdmd.teachers import PromptEmbeddings
from pdmd.teachers.conditioning.prompts import EncodedText, prompts_of


def text_encoder(batches, load=object, **more):
    """Encodes texts as their lengths, and records the sizes of batches."""

    def embed(encoder, texts):
        batches.append(len(texts))
        rows = torch.tensor([[float(len(text))] for text in texts])
        return TensorDict({"prompt": rows[:, None]}, batch_size=[len(texts)])

    return EncodedText(load, embed, null="", **more)


def test_texts_are_encoded_in_batches_and_the_null_prompt_as_its_text():
    batches = []
    encoder = text_encoder(batches, batch_size=2)
    condition = encoder.encode(["a", None, "abc"])
    assert batches == [2, 1]
    assert condition["prompt"].flatten().tolist() == [1.0, 0.0, 3.0]


def test_the_encoder_is_loaded_once():
    loads = []
    encoder = text_encoder([], load=lambda: loads.append(1) or object())
    assert not loads
    encoder.encode(["a"])
    encoder.encode(["b"])
    assert loads == [1]


def test_prompts_must_be_a_list_of_texts():
    with pytest.raises(ValueError, match=r"such as a list: \['a cat'\]"):
        text_encoder([], prompts="a cat")
    with pytest.raises(ValueError, match="a text or None, got 3"):
        text_encoder([]).encode([3])
    with pytest.raises(ValueError, match="no prompts; pass prompts="):
        _ = text_encoder([]).prompts


def test_embeddings_are_looked_up_by_prompt():
    condition = TensorDict({"prompt": torch.arange(6.0).reshape(3, 2, 1)}, batch_size=[3])
    embeddings = PromptEmbeddings(["a", "b", None], condition)
    assert embeddings.prompts == ["a", "b"] and embeddings.width == 1
    found = embeddings.encode([None, "a", "a"])["prompt"]
    assert torch.equal(found, condition["prompt"][[2, 0, 0]])
    with pytest.raises(ValueError, match="no embedding of the prompt 'c' among 3 prompts"):
        embeddings.encode(["c"])
    with pytest.raises(ValueError, match="got 2 prompts for 3 embeddings"):
        PromptEmbeddings(["a", "b"], condition)
    with pytest.raises(ValueError, match="'a' is repeated"):
        PromptEmbeddings(["a", "b", "a"], condition)


def test_random_embeddings_are_reproducible_and_masked_to_half_their_length():
    one, other = (
        PromptEmbeddings.random(20, length=6, dim=2, masked=True, more={"pooled": (3,)})
        for _ in range(2)
    )
    for key in ("prompt", "mask", "pooled"):
        assert torch.equal(one.condition[key], other.condition[key])
    lengths = one.condition["mask"].sum(1)
    assert lengths.min() >= 3 and lengths.max() <= 6
    assert not one.condition["prompt"][~one.condition["mask"]].any()
    assert one.shapes == {"prompt": (6, 2), "mask": (6,), "pooled": (3,)}


def test_embeddings_of_another_encoder_raise(monkeypatch):
    monkeypatch.setattr(
        "pdmd.teachers.conditioning.prompts.encoder_fingerprint", lambda folder: folder * 12
    )
    encoders = [text_encoder([], folder=folder) for folder in ("a", "b", "")]
    assert prompts_of(None, encoders[0]) is encoders[0]
    assert prompts_of(encoders[0], encoders[0]) is encoders[0]
    assert prompts_of(encoders[0], encoders[2]) is encoders[0]  # an unknown encoder
    with pytest.raises(ValueError, match="computed by another encoder .a{12}. than .*b{12}"):
        prompts_of(encoders[0], encoders[1])


def test_the_settings_of_an_encoder_enter_its_fingerprint(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "pdmd.teachers.conditioning.prompts.encoder_fingerprint", lambda folder: "files"
    )
    fingerprints = [
        EncodedText(dict, dict, null="", folder="f", how=how).fingerprint()
        for how in (None, {"text_length": 64}, {"text_length": 512})
    ]
    assert fingerprints[0] == "files" and len(set(fingerprints)) == 3


def test_an_empty_list_raises_before_the_encoder_is_loaded():
    with pytest.raises(ValueError, match="no prompts to encode"):
        EncodedText(lambda: 1 / 0, dict, null="").encode([])


@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        (
            torch.float16,
            "'pooled' of 'bad' is not finite in float16; encode in bfloat16 or float32",
        ),
        (torch.float32, "'pooled' of 'bad' is not finite in float32; check its weights"),
    ],
)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_embeddings_that_overflow_are_rejected(dtype, message, value):
    """A store of them would train no step, or black pictures."""

    def embed(encoder, texts):
        numbers = torch.tensor([[value if text == "bad" else 1.0, 2.0] for text in texts])
        fields = {"prompt": torch.zeros(len(texts), 3, 2), "pooled": numbers.to(dtype)}
        mask = torch.ones(len(texts), 3, dtype=torch.bool)
        return TensorDict({**fields, "mask": mask}, batch_size=[len(texts)])

    encoder = EncodedText(object, embed, null="", batch_size=2)
    assert encoder.encode(["a", "b", None])["pooled"].isfinite().all()
    with pytest.raises(ValueError, match=message):
        encoder.encode(["a", "b", "c", "bad"])


def test_a_string_is_no_list_of_prompts():
    """Its letters would be encoded, each as a prompt."""
    told = "prompts must be a list of prompts, got the string"
    teacher = MixtureTeacher.random(dim=2, modes=2, classes=2)
    network = MlpDenoiser.rectified_flow(dim=2, classes=2, width=8)
    student = Student([OdeExpert(network, p) for p in PhasePlan.uniform(1)], encode=list)
    encoder = EncodedText(object, dict, null="")
    for encode in (teacher.encode, student.encode, encoder.encode):
        with pytest.raises(ValueError, match=told):
            encode("01")
