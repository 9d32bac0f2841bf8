"""A store returns what the text encoders return, for every family with text."""

import pytest
import torch

from pdmd import Guided
from pdmd.teachers.base import teachers
from pdmd.teachers.conditioning.embeddings import embed
from tests.helpers import tiny_discrete as discrete
from tests.helpers.tiny_encoders import SAME, TEXTS, clip, qwen_text, t5
from tests.helpers.tiny_families import QWEN, WAN, family, noise, qwen_pipeline, wan_pipeline
from tests.helpers.tiny_flows import FLOWS, flow

SMALL = {"height": 64, "width": 48}
VIDEO = {"height": 32, "width": 16, "frames": 9}


def flow_pipeline(name):
    kind = FLOWS[name]
    return kind.pipeline(flow(name), text=TEXTS[kind.registered][0][0](), **kind.scheduler)


def flow_size(name):
    return {k: FLOWS[name].arguments[k] for k in SAME if k in FLOWS[name].arguments}


FAMILIES = {
    "qwen_image": (
        "qwen_image",
        lambda: qwen_pipeline(family("qwen_image"), text=qwen_text(QWEN["joint_attention_dim"])),
        SMALL,
    ),
    "wan": ("wan", lambda: wan_pipeline(family("wan_2.1"), text=t5(WAN["text_dim"])), VIDEO),
    "sd": (
        "stable_diffusion",
        lambda: discrete.sd_pipeline(discrete.family("sd"), text=clip(16)),
        SMALL,
    ),
    **{
        f"sdxl_{zeros}": (
            "sdxl",
            lambda zeros=zeros: discrete.xl_pipeline(
                discrete.family("sdxl"),
                text=(*clip(10), *clip(14, 12)),
                force_zeros=zeros,
            ),
            SMALL,
        )
        for zeros in (True, False)
    },
    **{
        name: (
            FLOWS[name].registered,
            lambda name=name: flow_pipeline(name),
            flow_size(name),
        )
        for name in FLOWS
        if FLOWS[name].registered in TEXTS
    },
}
PROMPTS = ["a cat", "a dog of much longer words", "c", "a b c d"]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_store_returns_what_the_encoders_return(tmp_path, monkeypatch, name):
    registered, pipeline, size = FAMILIES[name]
    pipeline().save_pretrained(tmp_path / "folder")
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    where = {"folder": str(tmp_path / "folder"), "dtype": "float32", **size}
    live = teachers.get(registered)(prompts=str(tmp_path / "prompts.txt"), **where)
    getattr(live.text, "inner", live.text).batch_size = 2
    url = f"memory://{tmp_path.name}"
    index = embed(live.text, PROMPTS, url, batch_size=2, shard_size=2, progress=False)
    assert index.encoder is not None
    monkeypatch.setattr("diffusers.DiffusionPipeline.from_pretrained", fail)
    stored = teachers.get(registered)(embeddings=url, cache=str(tmp_path / "cache"), **where)
    rows, expected = stored.conditions(stored.prompts)[:], live.encode(PROMPTS)
    null, other = stored.encode([None]), live.encode([None])
    assert set(rows.keys()) == set(expected.keys())
    for key in expected.exclude("lengths").keys():
        length = rows[key].shape[1]  # padding common to all rows is not stored
        assert length == expected[key].shape[1] or not expected["mask"][:, length:].any()
        assert torch.equal(rows[key], expected[key][:, :length])
        assert torch.equal(null[key], other[key][:, : null[key].shape[1]])
    x = noise(live, len(PROMPTS))
    guided = Guided(stored, 3.0)(x, 0.5, rows).value
    same = rows["prompt"].shape == expected["prompt"].shape
    close = torch.testing.assert_close
    close(guided, Guided(live, 3.0)(x, 0.5, expected).value, rtol=0, atol=0 if same else 1e-5)


def fail(*arguments, **more):
    raise AssertionError("a pipeline was loaded")
