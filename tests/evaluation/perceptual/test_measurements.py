"""Measurements of decoded samples, against the networks' own interfaces."""

from itertools import combinations

import numpy as np
import pytest
import torch

from pdmd.evaluation.features import FlatFeatures, TransformersFeatures
from pdmd.evaluation.perceptual.image_text import ImageTextScore
from pdmd.evaluation.perceptual.measurements import (
    DecodedSamples,
    MeasurementPlace,
    Thumbnails,
    decoded,
    measurements,
)
from pdmd.evaluation.perceptual.motion import Motion, motion_of_flows
from pdmd.evaluation.perceptual.pairwise_lpips import PairwiseLpips
from pdmd.evaluation.perceptual.video import VideoFeatures
from pdmd.evaluation.perceptual.vision import VisionFeatures
from pdmd.extras import MissingExtra
from tests.helpers.tiny_vision import (
    clip_folder,
    dinov2_folder,
    siglip_folder,
    videomae_folder,
)

PLACE = MeasurementPlace(device=torch.device("cpu"))


def samples(*shape, prompts=("a cat", "two"), seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return DecodedSamples(x, prompts)


def test_decoding_rounds_to_eight_bits_in_small_batches():
    sizes = []

    def decode(x):
        sizes.append(len(x))
        return x

    x = torch.rand(5, 1, 256, 256)
    found = decoded(decode, x)
    assert sizes == [1] * 5
    assert (found.float() / 255 - x).abs().max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize(("latent", "what"), [(torch.nan, "samples"), (1e30, "pictures")])
def test_what_is_not_finite_is_not_measured(latent, what):
    x = torch.rand(2, 1, 4, 4)
    x[1, 0, 0, 0] = latent
    with pytest.raises(ValueError, match=f"{what} are not finite"):
        decoded(lambda x: x * 1e30, x)


def test_frames_are_at_equal_distances_and_images_have_one():
    video = samples(4, 3, 9, 2, 2)
    assert torch.equal(video.frames(3), video.pictures[:, :, [0, 4, 8]].transpose(1, 2))
    assert torch.equal(video.frames(1)[:, 0], video.pictures[:, :, 4])
    assert video.frames(99).shape[1] == 9 and video.seeds == 2
    image = samples(4, 3, 2, 2)
    assert torch.equal(image.frames(4)[:, 0], image.pictures)


def test_thumbnails_are_the_means_of_their_pixels():
    small = Thumbnails(2)(samples(2, 3, 4, 8))
    assert small.shape == (2, 3, 1, 2)
    x = samples(2, 3, 4, 8).pictures.float()
    assert (small[..., 0, 0] - x[..., :4].mean((2, 3))).abs().max() <= 0.5


def test_vision_features_are_those_of_the_network(tmp_path):
    folder = dinov2_folder(tmp_path)
    video = samples(4, 3, 5, 20, 20)
    found = VisionFeatures.load(str(folder), PLACE)(video)
    extract = TransformersFeatures.from_pretrained(folder)
    assert found.shape == (4, 4, 16)
    assert torch.allclose(found[:, 0], extract(video.pictures[:, :, 0].float() / 255), atol=1e-5)


def test_the_clip_score_is_that_of_transformers(tmp_path):
    folder = clip_folder(tmp_path)
    score = ImageTextScore.load(str(folder), PLACE)
    given = samples(6, 3, 20, 20)
    found = score(given)
    pixels = score.preprocessing(given.pictures.float() / 255)
    tokens = score.tokenizer(["a cat", "two"], padding=True, return_tensors="pt")
    with torch.no_grad():
        output = score.model(pixel_values=pixels, **tokens)
    logits = output.logits_per_image / score.model.logit_scale.exp()
    own = torch.cat([logits[:3, 0], logits[3:, 1]])
    assert torch.allclose(found[:, 0], 100 * own.clamp(min=0), atol=1e-4)
    with pytest.raises(ValueError, match="the prompt 3 is no text"):
        score(samples(6, 3, 20, 20, prompts=(3, 4)))
    with pytest.raises(ValueError, match="no image-text model"):
        ImageTextScore.load(str(dinov2_folder(tmp_path / "other")), PLACE)


@pytest.mark.parametrize("make", [clip_folder, siglip_folder])
def test_a_score_does_not_depend_on_the_other_prompts(tmp_path, make):
    score = ImageTextScore.load(str(make(tmp_path)), PLACE)
    given = samples(4, 3, 16, 16, prompts=("two", "a cat and a dog"))
    alone = DecodedSamples(given.pictures[:2], given.prompts[:1])
    assert torch.allclose(score(given)[:2], score(alone), atol=1e-4)
    tokens = score.tokenizer(["two"], padding="max_length", return_tensors="pt")
    with torch.no_grad():
        text = score.model.get_text_features(**tokens)
        image = score.model.get_image_features(score.preprocessing(alone.pictures.float() / 255))
    cosines = torch.cosine_similarity(image.pooler_output, text.pooler_output)
    assert torch.allclose(score(alone)[:, 0], 100 * cosines.clamp(min=0), atol=1e-4)


def test_a_long_prompt_is_cut_to_the_positions_of_its_network(tmp_path):
    score = ImageTextScore.load(str(clip_folder(tmp_path)), PLACE)
    tokenizer = score.tokenizer
    tokenizer.model_max_length = 10**30  # as of tokenizers that state none
    again = ImageTextScore(score.model, tokenizer, score.preprocessing)
    given = samples(4, 3, 16, 16, prompts=("two", "a cat and a dog " * 9))
    assert again(given).isfinite().all()


def test_video_features_are_those_of_the_network_and_its_processor(tmp_path):
    from transformers import AutoImageProcessor, VideoMAEModel

    folder = videomae_folder(tmp_path)
    given = samples(2, 3, 7, 16, 16)
    found = VideoFeatures.load(str(folder), PLACE)(given)
    clips = [list(video[:, [0, 2, 4, 6]].transpose(0, 1).numpy()) for video in given.pictures]
    pixels = AutoImageProcessor.from_pretrained(folder)(clips, return_tensors="pt")
    with torch.no_grad():
        hidden = VideoMAEModel.from_pretrained(folder)(**pixels).last_hidden_state
    assert torch.allclose(found[:, 0], hidden.mean(1), atol=1e-4)
    with pytest.raises(ValueError, match="needs videos"):
        VideoFeatures.load(str(folder), PLACE)(samples(2, 3, 16, 16))
    with pytest.raises(ValueError, match="no num_frames"):
        VideoFeatures.load(str(dinov2_folder(tmp_path / "other")), PLACE)


@pytest.mark.parametrize("speed", [0.5, 1.5, 4.0])
def test_motion_of_a_translation_is_its_speed(speed):
    def flow(first, second):
        assert first.shape == second.shape and first.shape[1] == 3
        return torch.tensor([0.6, 0.8]).view(1, 2, 1, 1).expand(len(first), 2, 64, 48) * speed

    found = Motion(flow, fps=16)(samples(4, 3, 33, 64, 48))
    assert torch.allclose(found[:, 0], torch.tensor(speed))
    assert bool((found[:, 1] == float(speed > 6 * 48 / 256)).all())


def test_frames_of_a_pair_follow_one_another_at_eight_a_second():
    seen = []

    def flow(first, second):
        seen.extend((255 * torch.stack([first, second], 1)[:, :, 0, 0, 0]).round().tolist())
        return torch.zeros(len(first), 2, 1, 1)

    x = torch.arange(41, dtype=torch.uint8).view(1, 1, 41, 1, 1).expand(1, 1, 41, 32, 32)
    Motion(flow, fps=16)(DecodedSamples(x, ("a",)))
    assert seen == [[2.0 * i, 2.0 * i + 2] for i in range(20)]
    with pytest.raises(ValueError, match="--fps"):
        Motion(flow, fps=16)(samples(2, 3, 2, 8, 8))


def vbench(lengths, frames):
    """The dynamic degree of one video as VBench computes it."""
    height, width = lengths.shape[1:]
    scores = [np.mean(np.sort(x.flatten())[::-1][: int(height * width * 0.05)]) for x in lengths]
    moving = sum(score > 6.0 * (min(height, width) / 256.0) for score in scores)
    return float(moving >= round(4 * (frames / 16.0)))


def test_the_dynamic_degree_is_vbenchs():
    generator = torch.Generator().manual_seed(0)
    results = []
    for i in range(40):
        lengths = torch.rand(12, 24, 40, generator=generator) * (0.4 + 0.01 * i)
        lengths *= torch.rand(12, 1, 1, generator=generator)
        mean, moves = motion_of_flows(lengths)
        assert float(moves) == vbench(lengths.numpy(), 13)
        assert float(mean) == pytest.approx(float(lengths.mean()))
        results.append(float(moves))
    assert 0 < sum(results) < 40


@pytest.mark.parametrize("shape", [(6, 1, 8, 8), (6, 3, 5, 8, 8)])
def test_lpips_is_the_mean_over_pairs_within_a_prompt(shape):
    given = samples(*shape)

    def distance(a, b):
        assert a.shape[1] == 3 and float(a.min()) >= -1
        return (a - b).square().flatten(1).mean(1)[:, None, None, None]

    found = PairwiseLpips(distance)(given)
    x = given.frames(4).expand(-1, -1, 3, -1, -1).float() / 127.5 - 1
    for prompt in range(2):
        group = x[3 * prompt : 3 * prompt + 3]
        pairs = [(group[i] - group[j]).square().mean() for i, j in combinations(range(3), 2)]
        own = found[3 * prompt : 3 * prompt + 3].mean()
        assert float(own) == pytest.approx(float(sum(pairs) / 3), rel=1e-5)


def test_networks_of_packages_that_are_missing_are_named(monkeypatch):
    for name in ("torchvision", "lpips"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    for name, source in (("motion", "raft.safetensors"), ("lpips", "alex")):
        with pytest.raises(MissingExtra, match=r"pdmd\[perceptual\]"):
            measurements[name].load(source, PLACE)


def test_any_function_of_images_extracts():
    given = samples(4, 3, 2, 2)
    found = VisionFeatures(FlatFeatures())(given)
    assert torch.equal(found[:, 0], given.pictures.flatten(1) / 255)
