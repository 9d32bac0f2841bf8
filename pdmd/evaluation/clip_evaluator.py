r"""The metrics of clips: appearance, motion, and the diversity of both within a prompt.

Motion is that of :mod:`pdmd.evaluation.clip_motion`, relative to the teacher's: with the
velocities :math:`v` of the samples and :math:`v^*` of the teacher's with the same prompts,

.. math::
    \text{relative flow} = \frac{E \|v\|}{E \|v^*\|}, \qquad
    \text{flow spread} = \frac{E_c \, \mathrm{tr} \, \mathrm{Cov}(v \mid c)}
        {E_c \, \mathrm{tr} \, \mathrm{Cov}(v^* \mid c)}

Students that move less have a relative flow below 1; those that move alike a spread below 1.

References:
    Fan et al., Phased DMD, arXiv:2510.27684 (optical flow and dynamic degree of videos).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from pdmd.arguments import checked
from pdmd.evaluation.clip_classifier import ClipClassifier
from pdmd.evaluation.clip_motion import clip_motion, direction_count, velocity_spread
from pdmd.evaluation.evaluator import Evaluator
from pdmd.evaluation.metrics import (
    coverage_and_precision,
    frechet_distance,
    similarity_within_prompts,
    sliced_wasserstein,
    vendi_score,
)
from pdmd.teachers.packaged.clip_world import CLIP_NAMES, ClipBank
from pdmd.teachers.packaged.clips import ClipsTeacher
from pdmd.typing import Latents

__all__ = ["ClipsEvaluator"]


@checked
class ClipsEvaluator(Evaluator):
    """Compares clips in a small classifier's features and predictions, and by their motion.

    - ``accuracy``: the share of clips that show their prompt's character;
    - ``feature_distance``, ``feature_distance_real``: the Frechet distance of features, the mean
      over frames, to the teacher's samples and to real clips;
    - ``relative_flow``: mean speed over the teacher's;
    - ``flow_spread``: variance of velocities within a prompt over the teacher's;
    - ``directions``: effective number of directions within a prompt, at most 8;
    - ``flow_distance``: the sliced Wasserstein distance of velocities to the teacher's, in
      pixels per frame;
    - ``path_error``: distance from a straight path at constant speed, in pixels;
    - ``consistency``: mean cosine between the features of the first and the last frame;
    - ``sw2``: the sliced Wasserstein distance of latents to the teacher's;
    - ``cosine``, ``vendi``: similarity and effective number of appearances within a prompt;
    - ``coverage``, ``precision``: overlap with the support of the teacher's features.

    Args:
        teacher: The clips teacher, for its decoder.
        prompts: The prompts, names of characters.
        reference: The teacher's samples with these prompts, with shape
            :math:`(B, 1, 8, 16, 16)`.
        seed: The seed of the real clips.
    """

    quality, diversity = "feature_distance", "flow_spread"

    def __init__(
        self, teacher: ClipsTeacher, prompts: Sequence[str], reference: Latents, seed: int
    ) -> None:
        self.classifier = ClipClassifier.from_package()
        self.teacher = teacher
        self.character = torch.tensor([CLIP_NAMES.index(prompt) for prompt in prompts])
        generator = torch.Generator().manual_seed(seed + 100)
        self.truth = _bank().draw(len(prompts), generator, self.character).pictures
        self.truth_features = self._features(self.truth).mean(1)
        self.reference = reference
        pictures = teacher.decode(reference)
        self.features = self._features(pictures).mean(1)
        self.motion = clip_motion(pictures)

    def __call__(self, x: Latents) -> dict[str, float]:
        return self._metrics(x, self.teacher.decode(x))

    def real(self) -> dict[str, float]:
        """Returns the metrics of real clips."""
        return self._metrics(self.teacher.latents(self.truth), self.truth)

    def _features(self, pictures: Tensor) -> Tensor:
        return torch.cat([self.classifier.features(part) for part in pictures.split(128)])

    def _metrics(self, x: Latents, pictures: Tensor) -> dict[str, float]:
        frames = self._features(pictures)
        features = frames.mean(1)
        character, _ = self.classifier(features)
        motion, teacher, prompts = clip_motion(pictures), self.motion, self.character
        coverage, precision = coverage_and_precision(self.features, features)
        spread = velocity_spread(teacher.velocity, prompts)
        return {
            "accuracy": float((character.argmax(1) == prompts).float().mean()),
            "feature_distance": frechet_distance(features, self.features),
            "feature_distance_real": frechet_distance(features, self.truth_features),
            "relative_flow": float(motion.speed.mean() / teacher.speed.mean()),
            "flow_spread": velocity_spread(motion.velocity, prompts) / spread,
            "directions": direction_count(motion.velocity, prompts),
            "flow_distance": sliced_wasserstein(motion.velocity, teacher.velocity),
            "path_error": float(motion.path_error.mean()),
            "consistency": float(
                functional.cosine_similarity(frames[:, 0], frames[:, -1], dim=1).mean()
            ),
            "sw2": sliced_wasserstein(x.flatten(1), self.reference.flatten(1)),
            "cosine": similarity_within_prompts(features, prompts),
            "vendi": vendi_score(features, prompts),
            "coverage": coverage,
            "precision": precision,
        }


@cache
def _bank() -> ClipBank:
    return ClipBank()
