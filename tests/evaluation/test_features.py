import json

import pytest
import torch

from pdmd.evaluation.features import (
    FlatFeatures,
    Preprocessing,
    TransformersFeatures,
    class_token,
    mean_token,
    pooled,
)

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GRAY = (0.5, 0.5, 0.5)


def config(**changes):
    settings = {
        "image_processor_type": "BitImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": 32},
        "do_center_crop": True,
        "crop_size": {"height": 28, "width": 28},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(MEAN),
        "image_std": list(STD),
    }
    return {**settings, **changes}


def pixels(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, generator=generator) / 255


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from transformers import Dinov2Config, Dinov2Model

    path = tmp_path_factory.mktemp("dinov2")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Dinov2Model(
            Dinov2Config(
                hidden_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                image_size=28,
                patch_size=7,
            )
        )
    model.save_pretrained(path)
    (path / "preprocessor_config.json").write_text(json.dumps(config()))
    return path


def test_flat_features_keep_values():
    x = pixels(4, 2, 3)
    assert torch.equal(FlatFeatures()(x), x.reshape(4, 6))
    assert torch.equal(FlatFeatures()(x[:, 0]), x[:, 0])
    with pytest.raises(ValueError, match="stack"):
        FlatFeatures()(x[0, 0])


@pytest.mark.parametrize("resample", [0, 2, 3])
@pytest.mark.parametrize("shape", [(3, 40, 50), (3, 33, 21), (3, 28, 90)])
def test_preprocessing_agrees_with_the_processor_of_transformers(tmp_path, resample, shape):
    from transformers import AutoImageProcessor

    settings = config(resample=resample)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    x = pixels(2, *shape)
    theirs = AutoImageProcessor.from_pretrained(tmp_path)(
        [(255 * image).round().to(torch.uint8).numpy() for image in x], return_tensors="pt"
    )["pixel_values"]
    ours = Preprocessing.from_config(settings)(x)
    # Theirs rounds to bytes after each direction.
    assert ours.shape == theirs.shape
    assert float((ours - theirs).abs().max()) < 1.5 / 255 / min(STD)


def test_preprocessing_normalises_and_repeats_gray():
    p = Preprocessing(mean=MEAN, std=STD, size=None)
    x = pixels(2, 1, 5, 6)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    torch.testing.assert_close(p(x), (x - mean) / std)
    torch.testing.assert_close(p(x), p(x.repeat(1, 3, 1, 1)))
    flat = torch.full((1, 3, 40, 24), 0.3)
    resized = Preprocessing(mean=GRAY, std=GRAY, size=(16, 16), mode="bicubic")(flat)
    torch.testing.assert_close(resized, torch.full((1, 3, 16, 16), -0.4))


@pytest.mark.parametrize(
    ("changes", "size", "crop"),
    [
        ({}, 32, (28, 28)),
        ({"size": 32}, 32, (28, 28)),
        ({"size": 32, "do_center_crop": None, "crop_size": None}, (32, 32), None),
        ({"size": {"height": 8, "width": 9}, "do_center_crop": False}, (8, 9), None),
        ({"size": 32, "default_to_square": True, "crop_size": 28}, (32, 32), (28, 28)),
        ({"do_resize": False}, None, (28, 28)),
    ],
)
def test_sizes_are_read_as_in_transformers(changes, size, crop):
    p = Preprocessing.from_config(config(**changes))
    assert (p.size, p.crop) == (size, crop)


@pytest.mark.parametrize(
    "changes",
    [
        {"size": {"longest_edge": 32}},
        {"resample": 1},
        {"image_mean": None},
        {"rescale_factor": 1 / 127.5},
        {"do_rescale": False},
        {"crop_pct": 0.875},
        {"crop_size": None},
    ],
)
def test_unsupported_configurations_raise(changes):
    (key,) = changes
    with pytest.raises(ValueError, match=f"{key} = .*build Preprocessing"):
        Preprocessing.from_config(config(**changes))


def test_invalid_images_raise():
    p = Preprocessing.from_config(config())
    with pytest.raises(ValueError, match=r"\[0, 1\], got values from -1 to"):
        p(2 * pixels(1, 3, 40, 40) - 1)
    with pytest.raises(ValueError, match="values from nan"):
        p(torch.full((1, 3, 40, 40), torch.nan))
    with pytest.raises(ValueError, match="1 or 3"):
        p(pixels(1, 2, 40, 40))
    with pytest.raises(ValueError, match="crop"):
        Preprocessing(mean=GRAY, std=GRAY, size=None, crop=(9, 9))(pixels(1, 3, 8, 12))
    with pytest.raises(ValueError, match="positive std"):
        Preprocessing(mean=GRAY, std=(1.0, 0.0, 1.0), size=None)
    with pytest.raises(ValueError, match="lanczos"):
        Preprocessing(mean=GRAY, std=GRAY, size=8, mode="lanczos")


def test_features_equal_the_networks_output(folder):
    from transformers import AutoModel

    extract = TransformersFeatures.from_pretrained(folder, batch_size=2)
    x = pixels(5, 3, 40, 50)
    features = extract(x)
    model = AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        output = model(pixel_values=Preprocessing.from_config(config())(x))
    torch.testing.assert_close(features, output.pooler_output)
    for pool, expected in (
        (class_token, output.last_hidden_state[:, 0]),
        (mean_token, output.last_hidden_state.mean(1)),
    ):
        other = TransformersFeatures(model, extract.preprocessing, pool=pool)
        torch.testing.assert_close(other(x), expected)
    assert features.std(0).min() > 1e-4
    assert not any(p.requires_grad for p in extract.parameters()) and not extract.model.training
    gray = pixels(3, 1, 30, 30)
    torch.testing.assert_close(extract(gray), extract(gray.repeat(1, 3, 1, 1)))
    order = torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(extract(x[order]), features[order])


def test_features_of_half_precision_networks_are_float32(folder):
    full = TransformersFeatures.from_pretrained(folder)
    half = TransformersFeatures.from_pretrained(folder).to(torch.bfloat16)
    x = pixels(2, 3, 32, 32)
    assert half(x).dtype == torch.float32
    torch.testing.assert_close(half(x), full(x), atol=0.1, rtol=0.1)


def test_features_of_a_convolutional_network():
    from transformers import ResNetConfig, ResNetModel

    model = ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]))
    p = Preprocessing(mean=GRAY, std=GRAY, size=32)
    x = pixels(2, 3, 32, 32)
    average = TransformersFeatures(model, p, pool=mean_token)(x)
    torch.testing.assert_close(TransformersFeatures(model, p, pool=pooled)(x), average)
    with pytest.raises(ValueError, match="mean_token"):
        TransformersFeatures(model, p, pool=class_token)(x)
    with pytest.raises(ValueError, match="batch_size"):
        TransformersFeatures(model, p, batch_size=0)


def test_a_pooler_without_weights_raises(tmp_path):
    from transformers import ViTConfig, ViTModel

    settings = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=28,
        patch_size=7,
    )
    ViTModel(settings, add_pooling_layer=False).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"no preprocessor_config\.json"):
        TransformersFeatures.from_pretrained(tmp_path, pool=class_token)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config()))
    with pytest.raises(ValueError, match="no weights for pooler.*pool=class_token"):
        TransformersFeatures.from_pretrained(tmp_path)
    features = TransformersFeatures.from_pretrained(tmp_path, pool=class_token)
    assert features(pixels(2, 3, 28, 28)).shape == (2, 16)


def test_the_vision_network_of_an_image_text_model_is_used(tmp_path):
    from transformers import CLIPConfig, CLIPModel

    small = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    vision = {**small, "image_size": 28, "patch_size": 7}
    clip = CLIPModel(CLIPConfig(text_config=small, vision_config=vision, projection_dim=8)).eval()
    clip.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config()))
    extract, x = TransformersFeatures.from_pretrained(tmp_path), pixels(2, 3, 32, 32)
    with torch.no_grad():
        expected = clip.vision_model(pixel_values=extract.preprocessing(x)).pooler_output
    torch.testing.assert_close(extract(x), expected)


def test_a_missing_folder_is_a_one_line_error(tmp_path):
    with pytest.raises(ValueError, match="can't load a vision model.*pass a repository") as error:
        TransformersFeatures.from_pretrained(tmp_path / "nowhere")
    assert "\n" not in str(error.value) and "nowhere" in str(error.value)
    with pytest.raises(ValueError, match="can't load") as error:
        TransformersFeatures.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)
