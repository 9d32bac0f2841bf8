"""The fashion teacher: packaged weights, their quality, and pretraining."""

from importlib import resources

import pytest
import torch

from pdmd import sample_ode, teachers
from pdmd.cli.main import main
from pdmd.evaluation.fashion_classifier import FashionClassifier
from pdmd.teachers.guided import Guided
from pdmd.teachers.packaged.fashion import FashionTeacher
from pdmd.teachers.packaged.fashion_images import CLASSES
from pdmd.teachers.packaged.pretraining_fashion import pretrain_fashion
from tests.helpers.fashion_folders import write_fashion

WEIGHTS = resources.files("pdmd.teachers.packaged") / "weights"


@pytest.fixture(scope="module")
def teacher():
    return teachers.get("fashion")()


def test_the_weights_are_small_and_have_a_card(teacher):
    assert len((WEIGHTS / "fashion.safetensors").read_bytes()) < 10_000_000
    card = (WEIGHTS / "fashion.md").read_text()
    parameters = f"{sum(p.numel() for p in teacher.parameters()):,}"
    for word in ("pdmd pretrain fashion", "dataset-fashion-mnist", "MIT", "Licence", parameters):
        assert word in card


def test_samples_show_their_class(teacher):
    """Under guidance, as in the benchmark."""
    prompts = [CLASSES[i % 10] for i in range(100)]
    x = sample_ode(
        Guided(teacher, 1.5),
        teacher.encode(prompts),
        steps=10,
        generator=torch.Generator().manual_seed(0),
    )
    classifier, label = FashionClassifier.from_package(), torch.arange(100) % 10
    pictures = teacher.decode(x)
    assert (
        float((classifier(classifier.features(pictures)).argmax(1) == label).float().mean()) > 0.8
    )
    assert pictures.min() == 0 and pictures.max() > 0.7
    spread = torch.stack([pictures[label == c].std(0).mean() for c in range(10)])
    assert float(spread.min()) > 0.05  # several pictures a class


def test_classes_are_named_or_numbered(teacher):
    assert torch.equal(teacher.encode(["bag", None])["label"], torch.tensor([8, 10]))
    assert torch.equal(teacher.encode([8, "8"])["label"], torch.tensor([8, 8]))
    with pytest.raises(ValueError, match="hat.*the classes are t-shirt, trouser"):
        teacher.encode(["hat"])


def test_latents_are_decoded_to_the_pictures(teacher):
    pictures = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(teacher.decode(teacher.latents(pictures)), pictures)


def test_it_passes_the_conformance_check():
    assert main(["check", "fashion"]) == 0


def test_weights_round_trip_and_damaged_files_raise(teacher, tmp_path):
    path = tmp_path / "fashion.safetensors"
    teacher.save(path)
    assert path.read_bytes() == (WEIGHTS / "fashion.safetensors").read_bytes()
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"is not a fashion teacher.*pdmd pretrain fashion"):
        FashionTeacher.from_file(path)
    with pytest.raises(ValueError, match="does not exist"):
        FashionTeacher.from_file(tmp_path / "none.safetensors")


@pytest.mark.parametrize("name", ["fashion", "fashion-classifier"])
def test_pretraining_depends_on_its_seed_and_needs_the_data(tmp_path, name, capsys):
    folder, out = str(write_fashion(tmp_path / "data")), tmp_path / "network.safetensors"
    written = []
    for more in ([], [], ["--seed", "5"]):
        words = ["pretrain", name, "--data", folder, "--updates", "2", "--out", str(out)]
        assert main([*words, *more]) == 0
        written.append(out.read_bytes())
    assert written[0] == written[1] != written[2]
    assert main(["pretrain", name, "--out", str(out)]) == 2
    assert "--data FOLDER" in capsys.readouterr().err
    assert main(["pretrain", "digits", "--data", folder, "--out", str(out)]) == 2


def test_pretraining_lowers_the_loss_of_flow_matching(tmp_path):
    """On pictures of one brightness a class, the mean of samples follows the class."""
    folder = write_fashion(tmp_path)
    trained = pretrain_fashion(folder, updates=30, batch_size=16, progress=False)
    x = sample_ode(
        trained,
        trained.encode([0, 9] * 4),
        steps=8,
        generator=torch.Generator().manual_seed(0),
    )
    dark, bright = trained.decode(x[::2]).mean(), trained.decode(x[1::2]).mean()
    assert float(bright - dark) > 0.2
