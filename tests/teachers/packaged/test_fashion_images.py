"""Fashion-MNIST's files: what is read, and errors that name the file and the remedy."""

import pytest
import torch

from pdmd.teachers.packaged.fashion_images import FashionImages
from pdmd.teachers.packaged.idx import read_idx, write_idx
from tests.helpers.fashion_folders import write_fashion


def test_pictures_and_labels_are_read_zipped_or_not(tmp_path):
    folder = write_fashion(tmp_path)
    train, test = (FashionImages.from_folder(folder, split) for split in ("train", "t10k"))
    assert train.pictures.shape == (60, 1, 28, 28) and train.labels.tolist() == [*range(10)] * 6
    raw = read_idx(folder / "t10k-images-idx3-ubyte")
    assert torch.equal((test.pictures[:, 0] * 255).round().byte(), raw)
    assert test.digest() == FashionImages.from_folder(folder, "t10k").digest() != train.digest()


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("images-idx3", torch.zeros(60, 28, 27), r"shape \(60, 28, 27\), expected pictures of 28"),
        ("images-idx3", torch.zeros(0, 28, 28), r"shape \(0, 28, 28\)"),
        ("labels-idx1", torch.zeros(59), "expected the classes of the 60 pictures"),
        ("labels-idx1", torch.full((60,), 10), "the class 10, expected classes from 0 to 9"),
    ],
)
def test_files_that_do_not_fit_are_errors(tmp_path, name, array, message):
    folder = write_fashion(tmp_path)
    write_idx(array.byte(), folder / f"t10k-{name}-ubyte")
    with pytest.raises(ValueError, match=f"t10k-{name}-ubyte has.*{message}.*Debian package"):
        FashionImages.from_folder(folder, "t10k")


def test_a_missing_file_and_a_missing_folder_are_errors(tmp_path):
    with pytest.raises(ValueError, match="neither train-images-idx3-ubyte.gz nor.*zalando"):
        FashionImages.from_folder(tmp_path, "train")
    with pytest.raises(ValueError, match="--data FOLDER"):
        FashionImages.from_folder("", "t10k")
