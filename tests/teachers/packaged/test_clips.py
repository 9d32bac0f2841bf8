"""The clips teacher: packaged weights, quality, motion, and reproducible pretraining."""

from importlib import resources

import pytest
import torch
from safetensors.torch import load_file

from pdmd import PhasePlan, sample_ode, teachers
from pdmd.cli.main import main
from pdmd.evaluation.clip_evaluator import ClipsEvaluator
from pdmd.evaluation.clip_motion import clip_motion
from pdmd.evaluation.evaluators import LatentEvaluator, evaluator_for
from pdmd.evaluation.pictures import sample_writer
from pdmd.teachers.packaged.clip_world import CLIP_NAMES
from pdmd.teachers.packaged.clips import WORDS, ClipsTeacher

WEIGHTS = resources.files("pdmd.teachers.packaged") / "weights"


@pytest.fixture(scope="module")
def teacher():
    return teachers.get("clips")()


@pytest.fixture(scope="module")
def drawn(teacher):
    prompts = [CLIP_NAMES[i % 20] for i in range(120)]
    generator = torch.Generator().manual_seed(0)
    times = PhasePlan.uniform(10, shift=teacher.shift).timesteps
    return prompts, sample_ode(teacher, teacher.encode(prompts), times=times, generator=generator)


def test_the_weights_are_small_and_have_a_card(teacher):
    assert len((WEIGHTS / "clips.safetensors").read_bytes()) < 3_000_000
    card = (WEIGHTS / "clips.md").read_text()
    number = sum(p.numel() for p in teacher.parameters())
    for word in ("pdmd pretrain clips", "DejaVu", "Licence", f"{number:,}"):
        assert word in card


def test_prompts_are_words_and_others_are_errors(teacher):
    tokens = teacher.encode(["latin capital letter A", None, "DIGIT TWO"])["tokens"]
    assert [WORDS[i] for i in tokens[0]] == ["LATIN", "CAPITAL", "LETTER", "A"]
    assert not tokens[1].any() and [WORDS[i] for i in tokens[2]] == ["DIGIT", "TWO", "", ""]
    for prompt in ("a cat", "", "DIGIT " * 5):
        with pytest.raises(ValueError, match="of the words"):
            teacher.encode([prompt])


def test_samples_show_their_prompts_and_move_in_all_directions(teacher, drawn):
    prompts, x = drawn
    measure = ClipsEvaluator(teacher, prompts, x, seed=0)
    row, real = measure(x), measure.real()
    assert row["accuracy"] > 0.75 and row["relative_flow"] == row["flow_spread"] == 1
    assert 0.9 < real["relative_flow"] < 1.7 and 0.8 < real["flow_spread"] < 2.6
    assert row["directions"] > 0.9 * real["directions"]
    assert row["consistency"] > real["consistency"] - 0.2


def test_it_passes_the_conformance_check(capsys):
    assert main(["check", "clips"]) == 0


def test_the_evaluator_is_chosen_by_the_prompts(teacher, drawn):
    prompts, x = drawn
    own = evaluator_for(teacher, None, x, 0, prompts=prompts)
    other = evaluator_for(teacher, None, x, 0, prompts=["LATIN X"] * len(x))
    assert isinstance(own, ClipsEvaluator) and isinstance(other, LatentEvaluator)


def test_clips_are_written_as_a_moving_grid(teacher, drawn, tmp_path):
    from PIL import Image

    prompts, x = drawn
    writer = sample_writer(str(tmp_path / "clips.gif"), video=True)
    writer.add(teacher.decode(x[:4]), prompts[:4])
    writer.close()
    assert Image.open(tmp_path / "clips.gif").n_frames > 4


def test_weights_round_trip_and_damaged_files_raise(tmp_path, teacher):
    path = tmp_path / "clips.safetensors"
    teacher.save(path)
    again = ClipsTeacher.from_file(path, prompts=CLIP_NAMES[:3])
    assert list(again.prompts) == list(CLIP_NAMES[:3]) and again.mean == teacher.mean
    for key, value in teacher.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="pdmd pretrain clips"):
        ClipsTeacher.from_file(path)
    with pytest.raises(ValueError, match="does not exist"):
        ClipsTeacher.from_file(tmp_path / "none.safetensors")


@pytest.mark.parametrize("name", ["clips", "clip-classifier"])
def test_pretraining_depends_on_its_seed(tmp_path, name):
    written = []
    for seed in ("4", "4", "5"):
        path = tmp_path / "weights.safetensors"
        words = ["pretrain", name, "--updates", "2", "--out", str(path), "--seed", seed]
        assert main(words) == 0
        written.append(load_file(path))
    first, again, other = written
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    assert not all(torch.equal(value, other[key]) for key, value in first.items())


def test_latents_are_centred_and_decode_to_their_clips(teacher, drawn):
    pictures = teacher.decode(drawn[1])
    torch.testing.assert_close(teacher.decode(teacher.latents(pictures)), pictures)
    assert drawn[1].mean().abs() < 0.1 and drawn[1].std() == pytest.approx(1, abs=0.15)
    assert clip_motion(pictures).speed.min() > 0
