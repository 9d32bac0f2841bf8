"""Arguments of every family: those that are rejected, and the released sizes."""

import pytest
import torch

from pdmd.teachers import QwenImageTeacher, WanTeacher
from pdmd.teachers.base import teachers
from pdmd.teachers.families.tokens import scheduled_shift
from tests.helpers.tiny_discrete import DIT, SD, TINY, XL
from tests.helpers.tiny_families import QWEN, WAN
from tests.helpers.tiny_flows import FLOWS

ARGUMENTS = {
    "qwen_image": QWEN,
    "wan": WAN,
    "stable_diffusion": SD,
    "sdxl": XL,
    "ddpm": TINY,
    "dit": DIT,
    **{name: FLOWS[name].arguments for name in ("flux", "sd3", "z_image", "ltx", "wan_i2v")},
}
"""Small arguments of every family by its registered name."""


@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_missing_folder_is_named(tmp_path, name):
    with pytest.raises(ValueError, match="cannot load .*nowhere.* save_pretrained wrote"):
        teachers.get(name)(folder=str(tmp_path / "nowhere"))


@pytest.mark.parametrize("name", ARGUMENTS)
def test_an_unknown_argument_is_named_with_the_known_ones(tmp_path, name):
    known = next(iter(ARGUMENTS[name]))
    for folder in ({}, {"folder": str(tmp_path)}):
        with pytest.raises(
            ValueError, match=r"Teacher takes no argument 'colour'; it takes "
        ) as raised:
            teachers.get(name)(colour="red", **folder)
        assert "\n" not in str(raised.value)
        assert folder or known in str(raised.value)


@pytest.mark.parametrize("name", ["qwen_image", "wan", "stable_diffusion", "sdxl"])
def test_a_length_of_texts_that_does_not_vary_is_rejected(tmp_path, name):
    with pytest.raises(ValueError, match="takes no text_length, got 5"):
        teachers.get(name)(folder=str(tmp_path), text_length=5)


@pytest.mark.parametrize("name", [name for name in ARGUMENTS if name != "dit"])
def test_the_shift_given_replaces_the_recommended_one(name):
    teacher = teachers.get(name)(shift=2.5, meta=True, **ARGUMENTS[name])
    assert teacher.shift == 2.5
    part = getattr(teacher, "first", teacher)
    assert part.with_backbone(part.backbone).shift == 2.5


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("qwen_image", {"height": 40}, "height must be a multiple of 16, got 40"),
        ("qwen_image", {"attention_head_dim": 7}, "even and at least 8, got 7"),
        ("qwen_image", {"dtype": "int8"}, "float32, bfloat16 or float16, got 'int8'"),
        ("qwen_image", {"prompts": "file.txt"}, "need a text encoder"),
        ("qwen_image", {"random_prompts": 0}, "random_prompts must be at least 1, got 0"),
        ("wan", {"frames": 8}, "frames must be a multiple of 4 plus one, got 8"),
        ("wan", {"width": 24}, "width must be a multiple of 16, got 24"),
        ("wan", {"boundary_ratio": 1.5}, r"in \(0, 1\), got 1.5"),
        ("flux", {"width": 40}, "width must be a multiple of 16, got 40"),
        ("flux", {"guidance_embeds": False, "guidance_embedded": 3.0}, "takes no guidance as an"),
        ("flux", {"guidance_embedded": float("nan")}, "must be finite, got nan"),
        ("flux", {"attention_head_dim": 9}, "even and at least 8, got 9"),
        ("z_image", {"height": 72}, "height must be a multiple of 16, got 72"),
        ("z_image", {"width": 8208}, "end at 8192 x 8192 pixels, got an image of 64 x 8208"),
        ("z_image", {"cfg_normalization": -1.0}, "must be finite and at least 0, got -1.0"),
        ("z_image", {"attention_head_dim": 4}, "even and at least 6, got 4"),
        ("ltx", {"frames": 16}, "frames must be a multiple of 8 plus one, got 16"),
        ("ltx", {"width": 80}, "width must be a multiple of 32, got 80"),
        ("ltx", {"frame_rate": 0.0}, "frame_rate must be positive and finite, got 0.0"),
        ("ltx", {"attention_head_dim": 3}, "even and at least 2, got 3"),
        ("wan_i2v", {"frames": 8}, "frames must be a multiple of 4 plus one, got 8"),
        ("wan_i2v", {"width": 24}, "width must be a multiple of 16, got 24"),
        ("wan_i2v", {"boundary_ratio": 1.5}, r"in \(0, 1\), got 1.5"),
        ("wan_i2v", {"attention_head_dim": 4}, "even and at least 6, got 4"),
        ("sd3", {"height": 40}, "height must be a multiple of 16, got 40"),
        ("sd3", {"width": 112}, "ends at 96 pixels, got an image of 64 x 112"),
        ("sd3", {"prompts": "file.txt"}, "need a text encoder"),
        ("stable_diffusion", {"version": 3}, "version must be 1 or 2, got 3"),
        ("stable_diffusion", {"height": 60}, "height must be a multiple of 8, got 60"),
        ("stable_diffusion", {"channels": 6}, "channels must be a multiple of norm_num_groups"),
        (
            "stable_diffusion",
            {"prediction_type": "flow"},
            "prediction_type must be one of epsilon",
        ),
        ("sdxl", {"width": 0}, "width must be a multiple of 8, got 0"),
        ("sdxl", {"channels": 6}, "channels must be a multiple of norm_num_groups"),
        ("ddpm", {"height": 12}, "height must be a multiple of 8, got 12"),
        ("ddpm", {"channels": 6}, "channels must be a multiple of norm_num_groups"),
        ("dit", {"sample_size": 7}, "sample_size must be a multiple of patch_size, got 7 and 2"),
        ("dit", {"attention_head_dim": 5}, "multiple of 4, got 10"),
    ],
)
def test_a_bad_argument_is_named(name, arguments, message):
    with pytest.raises(ValueError, match=message) as raised:
        teachers.get(name)(**{**ARGUMENTS[name], **arguments})
    assert "\n" not in str(raised.value)


def test_unsupported_networks_are_refused():
    from diffusers import QwenImageTransformer2DModel, WanTransformer3DModel

    with torch.device("meta"):
        video = WanTransformer3DModel(in_channels=36, num_layers=1)
        image = QwenImageTransformer2DModel(guidance_embeds=True, num_layers=1)
    with pytest.raises(ValueError, match="needs a first image"):
        WanTeacher(video)
    with pytest.raises(ValueError, match="guidance_embeds"):
        QwenImageTeacher(image)


SIZES = {
    "wan_i2v": ({}, 2 * 14_288_901_184),
    "wan_i2v_2.1": ({"boundary_ratio": 0.0, "image_dim": 1280}, 16_394_878_784),
    "wan_i2v_5b": (
        {
            "boundary_ratio": 0.0,
            "replaces_first_frame": True,
            "latent_channels": 48,
            "spatial_compression": 16,
            "num_layers": 30,
            "num_attention_heads": 24,
            "ffn_dim": 14336,
            "width": 1280,
            "random_prompts": 1,
        },
        4_999_787_712,
    ),
    "ltx": ({}, 1_923_385_472),
    "z_image": ({}, 6_154_908_736),
    "flux": ({}, 11_901_408_320),
    "flux_schnell": ({"guidance_embeds": False}, 11_891_178_560),
    "sd3": ({}, 2_028_328_000),
    "sd3.5": (
        {"qk_norm": "rms_norm", "dual_attention_layers": range(13)},
        2_243_171_520,
    ),
}


@pytest.mark.parametrize("name", SIZES)
def test_full_size_builds_without_memory(name):
    arguments, parameters = SIZES[name]
    teacher = teachers.get(FLOWS[name].registered)(meta=True, **arguments)
    assert sum(p.numel() for p in teacher.parameters()) == parameters
    assert {p.device.type for p in teacher.parameters()} == {"meta"}
    assert {b.device.type for b in teacher.buffers()} <= {"cpu"}


def test_qwen_image_and_wan_build_without_memory():
    qwen, wan = (teachers.get(name)(meta=True) for name in ("qwen_image", "wan"))
    counts = [sum(p.numel() for p in t.parameters()) for t in (qwen, *wan.routed.denoisers)]
    assert [round(n / 1e9, 1) for n in counts] == [20.4, 14.3, 14.3]
    assert qwen.backbone.config.axes_dims_rope == (16, 56, 56)
    tables = [qwen.backbone.pos_embed.pos_freqs, wan.first.backbone.rope.freqs_cos]
    assert {table.device.type for table in tables} == {"cpu"}
    assert qwen.latent_shape == (16, 128, 128) and wan.latent_shape == (16, 21, 60, 104)


def test_discrete_families_build_without_memory():
    counts = {
        name: sum(p.numel() for p in teachers.get(name)(meta=True, **arguments).parameters())
        for name, arguments in (
            ("stable_diffusion", {}),
            ("sdxl", {}),
            ("ddpm", {}),
            ("dit", {}),
        )
    }
    assert counts == {
        "stable_diffusion": 859_520_964,
        "sdxl": 2_567_463_684,
        "ddpm": 35_746_307,
        "dit": 749_826_464,  # every block has its own copy of the times' and labels' embedding
    }
    second = teachers.get("stable_diffusion")(version=2, meta=True)
    assert sum(p.numel() for p in second.parameters()) == 865_910_724
    assert second.latent_shape == (4, 96, 96) and second.kind == "v_prediction"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in ARGUMENTS if name not in ("dit", "wan_i2v")])
def test_a_teacher_of_another_size_is_the_one_built_at_that_size(name):
    given = {**ARGUMENTS[name], **({"pos_embed_max_size": 12} if name == "sd3" else {})}
    teacher = teachers.get(name)(**given)
    own = getattr(teacher, "first", teacher).options
    sizes = {key: 2 * own[key] for key in ("height", "width")}
    if "frames" in own:
        sizes["frames"] = 2 * own["frames"] - 1
    built, resized = teachers.get(name)(**{**given, **sizes}), teacher.with_size(**sizes)
    assert resized.latent_shape == built.latent_shape != teacher.latent_shape
    assert (resized.shift, resized.prompts) == (built.shift, built.prompts)
    assert {id(p) for p in resized.parameters()} == {id(p) for p in teacher.parameters()}
    x = torch.randn((1, *built.latent_shape), generator=torch.Generator().manual_seed(0))
    condition = built.encode(list(built.prompts)[:1])
    with torch.no_grad():
        values = [one(x, 0.5, condition).value for one in (teacher, resized, built)]
    assert all(torch.equal(value, values[-1]) for value in values)  # sizes are those of latents


@pytest.mark.filterwarnings("ignore")
def test_sizes_that_a_teacher_does_not_take_are_errors():
    with pytest.raises(ValueError, match="one size: that at which its prompts' first images"):
        teachers.get("wan_i2v")(**ARGUMENTS["wan_i2v"]).with_size(height=64)
    with pytest.raises(ValueError, match="takes no argument 'frames'; it takes height, width"):
        teachers.get("qwen_image")(**QWEN).with_size(frames=9)
    with pytest.raises(ValueError, match="height must be a multiple of 16, got 40"):
        teachers.get("qwen_image")(**QWEN).with_size(height=40)
    with pytest.raises(ValueError, match="DigitsTeacher has samples of one size"):
        teachers.get("digits")().with_size(height=8)


@pytest.mark.parametrize(
    "given",
    [
        {"shift": None},
        {"shift": "3.0"},
        {"flow_shift": None, "shift": 3.0},
        {"use_dynamic_shifting": True, "base_shift": None},
        {"use_dynamic_shifting": True, "max_image_seq_len": True},
    ],
)
def test_a_shift_that_is_no_number_is_named(given):
    key = next(k for k in reversed(given) if k != "use_dynamic_shifting" and given[k] != 3.0)
    with pytest.raises(ValueError, match=f"configuration has {key} = {given[key]!r}, which is no"):
        scheduled_shift(given, 64)
