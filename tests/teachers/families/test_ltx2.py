"""LTX-2's two streams: one sample, its parts, the sound's guidance and its decoder."""

import pytest
import torch

from pdmd import Guided
from pdmd.teachers import LTX2Teacher
from pdmd.teachers.families.tiny.pipelines import TINY, write_tiny_pipeline
from tests.helpers.tiny_families import close, noise, ode
from tests.helpers.tiny_more_flows import arguments_of, has_ltx2, more, pipeline_of, run_ltx2

pytestmark = pytest.mark.skipif(not has_ltx2(), reason="an earlier diffusers")


def test_the_sound_is_guided_by_its_own_scale_as_in_the_pipeline():
    plain = more("ltx2")
    teacher = LTX2Teacher(plain.backbone, **{**plain.options, "audio_guidance": 3.0})
    condition, null = plain.encode(plain.prompts), plain.encode([None])
    pipeline = pipeline_of("ltx2")
    expected = run_ltx2(pipeline, plain, condition, null, scale=3.0, audio=7.0, steps=3)
    times = pipeline.scheduler.sigmas.tolist()
    close(ode(Guided(teacher, 3.0, null), condition, times), expected)
    equal = ode(Guided(plain, 3.0, null), condition, times)
    close(teacher.guide(expected, equal, 1.0), expected, 1e-6)
    assert (plain.audio_of(equal) - plain.audio_of(expected)).abs().max() > 1e-2


def test_streams_hear_and_see_each_other():
    teacher = more("ltx2")
    condition, x = teacher.encode(teacher.prompts[:1]), noise(teacher, 1)
    louder, brighter = x.clone(), x.clone()  # by a number
    teacher.audio_of(louder).add_(1)
    brighter[..., : teacher.tokens] += 1
    with torch.no_grad():
        value, of_sound, of_light = (
            teacher(sample, 0.5, condition).value for sample in (x, louder, brighter)
        )
    assert (teacher.video_of(of_sound) - teacher.video_of(value)).abs().max() > 1e-4
    assert (teacher.audio_of(of_light) - teacher.audio_of(value)).abs().max() > 1e-4


def test_a_sound_decodes_as_in_the_pipeline(tmp_path):
    folder = write_tiny_pipeline("ltx2", tmp_path)
    loaded = LTX2Teacher.from_pretrained(folder, dtype="float32", **TINY["ltx2"].options)
    pipeline = pipeline_of("ltx2", text=True)
    teacher = more("ltx2")
    rows = teacher.encode(teacher.prompts), teacher.encode([None])
    latents = run_ltx2(pipeline, teacher, *rows, scale=1.0, steps=2)
    expected = run_ltx2(pipeline, teacher, *rows, scale=1.0, steps=2, output="pt")
    close(loaded.decode(latents), expected.float())
    sound = run_ltx2(pipeline, teacher, *rows, scale=1.0, steps=2, output="sound")
    found = loaded.decode_audio(latents)
    assert found.shape[:2] == (3, 2) and found.shape == sound.shape
    close(found, sound)
    wider = loaded.with_size(width=128)
    assert wider.decode(noise(wider, 1)).shape[-1] == 128
    with pytest.raises(ValueError, match="no vocoder"):
        teacher.decode_audio(latents)


def test_samples_have_25_tokens_of_sound_a_second():
    for frames, rate, number in ((9, 24.0, 9), (121, 24.0, 126), (25, 12.5, 50)):
        sizes = {**arguments_of("ltx2"), "frames": frames, "frame_rate": rate}
        teacher = LTX2Teacher.from_config(**sizes, meta=True)
        assert teacher.audio_of(torch.zeros(1, *teacher.latent_shape)).shape == (1, 4, number)
    with pytest.raises(ValueError, match="audio_guidance must be positive and finite, got 0"):
        LTX2Teacher.from_config(**arguments_of("ltx2"), audio_guidance=0.0)
