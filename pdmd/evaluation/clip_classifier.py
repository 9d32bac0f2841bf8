"""A small classifier of frames of clips: which character they show, and in which typeface.

Its hidden layer gives the features of clip metrics. It reads single frames, so the features of two
frames tell whether a moving character keeps its appearance.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from pdmd.files import save_tensors
from pdmd.teachers.packaged.clip_world import CLIP_CHARACTERS, ClipBank
from pdmd.teachers.packaged.glyph_world import FACES

__all__ = ["ClipClassifier", "train_clip_classifier"]

WEIGHTS = "clip_classifier.safetensors"


class ClipClassifier(nn.Module):
    """A small convolutional network over frames of 16 x 16 pixels."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for near, far, stride in ((1, 16, 1), (16, 32, 2), (32, 64, 2)):
            layers += [nn.Conv2d(near, far, 3, stride=stride, padding=1), nn.BatchNorm2d(far)]
            layers.append(nn.ReLU())
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 16, 64))
        self.character = nn.Linear(64, len(CLIP_CHARACTERS))
        self.face = nn.Linear(64, len(FACES))

    @classmethod
    def from_package(cls) -> ClipClassifier:
        """Loads the weights that ship with the package."""
        from safetensors.torch import load_file

        classifier = cls()
        path = Path(str(resources.files("pdmd.evaluation"))) / "weights" / WEIGHTS
        state = {key: value.float() for key, value in load_file(path).items()}
        classifier.load_state_dict(state, strict=False)
        return classifier.eval().requires_grad_(False)

    def save(self, path: str | Path) -> None:
        """Writes the weights in half precision, as a safetensors file."""
        kept = {k: v.half() for k, v in self.state_dict().items() if v.is_floating_point()}
        save_tensors(kept, path)

    def features(self, pictures: Tensor) -> Tensor:
        """Returns the features of every frame, with shape :math:`(B, F, 64)`.

        Args:
            pictures: Clips in [0, 1], with shape :math:`(B, 1, F, 16, 16)`.
        """
        frames = pictures.transpose(1, 2).flatten(0, 1)
        rows = torch.cat([self.body(1 - 2 * part) for part in frames.split(1024)])
        return rows.unflatten(0, (len(pictures), -1))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the logits of characters and of typefaces, given :meth:`features`."""
        hidden = features.relu()
        return self.character(hidden), self.face(hidden)


def train_clip_classifier(
    *, updates: int = 3000, seed: int = 1, progress: bool = True
) -> ClipClassifier:
    """Trains the classifier on the frames of clips with noise added.

    Args:
        updates: Optimizer updates, on all frames of 32 clips each.
        seed: The seed of the initial weights and all random numbers.
        progress: Whether to show a progress bar.

    Returns:
        The classifier, frozen.
    """
    from tqdm import tqdm

    bank = ClipBank()
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        classifier = ClipClassifier()
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=2e-3, weight_decay=1e-3)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=updates)
    for _ in tqdm(range(updates), "classifier", disable=not progress, dynamic_ncols=True):
        clips = bank.draw(32, generator)
        deviation = 0.1 * torch.rand(32, 1, 1, 1, 1, generator=generator)
        noise = torch.randn(clips.pictures.shape, generator=generator)
        character, face = classifier(classifier.features(clips.pictures + deviation * noise))
        frames = character.shape[1]
        loss = functional.cross_entropy(
            character.flatten(0, 1), clips.character.repeat_interleave(frames)
        )
        loss = loss + functional.cross_entropy(
            face.flatten(0, 1), clips.face.repeat_interleave(frames)
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        rate.step()
    return classifier.eval().requires_grad_(False)
