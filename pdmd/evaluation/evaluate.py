"""Comparison of a student with its teacher."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pdmd.evaluation.features import DigitsClassifier, load_digit_images
from pdmd.evaluation.metrics import (
    coverage_and_precision,
    frechet_distance,
    mode_histogram_kl,
    pairwise_cosine,
    sliced_wasserstein,
)
from pdmd.sampling import sample, sample_ode
from pdmd.students import Student
from pdmd.teachers.base import Teacher
from pdmd.teachers.guided import Guided
from pdmd.teachers.mixture import MixtureTeacher
from pdmd.typing import Condition, Latents

__all__ = ["evaluate", "format_table"]

Draw = Callable[[torch.Generator], Latents]


def evaluate(
    student: Student,
    teacher: Teacher,
    *,
    samples: int = 2000,
    seed: int = 1234,
    teacher_steps: int = 50,
    progress: bool = True,
) -> dict[str, Any]:
    """Measures the student against the teacher's many-step and few-step samples.

    Args:
        student: The student.
        teacher: Its teacher, of digits or of a Gaussian mixture, guided or not.
        samples: Samples of each method, spread evenly over the prompts.
        seed: Seed of every draw.
        teacher_steps: Steps of the teacher's own sampling.
        progress: Whether to show a progress bar.

    Returns:
        ``{"rows": [{"method": ..., "nfe": ..., metrics}, ...]}``. On digits, coverage and
        precision of ``real`` are one half of the images against the other; every other figure is
        against a reference draw of the teacher.

    Raises:
        ValueError: If there is no benchmark for the teacher.
    """
    from tqdm import tqdm

    from pdmd.teachers.digits import DigitsTeacher

    base = teacher.teacher if isinstance(teacher, Guided) else teacher
    prompts = [teacher.prompts[i % len(teacher.prompts)] for i in range(samples)]
    condition = teacher.encode(prompts)
    per_step = 2 if isinstance(teacher, Guided) and teacher.scale != 1 else 1
    few = student.plan.nfe

    def ode(steps: int) -> Draw:
        return lambda g: sample_ode(teacher, condition, steps=steps, batch=samples, generator=g)

    draws: dict[str, tuple[int, Draw]] = {
        "reference": (teacher_steps * per_step, ode(teacher_steps)),
        "teacher": (teacher_steps * per_step, ode(teacher_steps)),
        f"teacher_euler_{few}": (few * per_step, ode(few)),
        "student": (few, lambda g: sample(student, condition, batch=samples, generator=g)),
    }
    drawn = {}
    for i, (name, (_, draw)) in enumerate(tqdm(draws.items(), "evaluate", disable=not progress)):
        drawn[name] = draw(torch.Generator().manual_seed(seed + i))
    reference = drawn.pop("reference")
    if isinstance(base, DigitsTeacher):
        measure, rows = _digits(base, reference, condition, seed)
    elif isinstance(base, MixtureTeacher):
        measure, rows = _mixture(base, condition, samples, seed)
    else:
        raise ValueError(
            f"there is no benchmark for {type(base).__name__}; sample with pdmd.sample and use "
            "the functions of pdmd.evaluation.metrics"
        )
    rows += [{"method": name, "nfe": draws[name][0], **measure(x)} for name, x in drawn.items()]
    return {"rows": rows}


def format_table(rows: Sequence[dict[str, Any]]) -> str:
    """Formats rows of one benchmark as an aligned table."""
    names = list(rows[0])
    cells = [names]
    for row in rows:
        values = [row[name] for name in names]
        cells.append([f"{v:.3f}" if isinstance(v, float) else str(v) for v in values])
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    lines = []
    for line in cells:
        aligned = [
            c.ljust(w) if i == 0 else c.rjust(w)
            for i, (c, w) in enumerate(zip(line, widths, strict=True))
        ]
        lines.append("  ".join(aligned))
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _digits(
    teacher: Any, reference: Latents, condition: Condition, seed: int
) -> tuple[Callable[[Latents], dict[str, float]], list[dict[str, Any]]]:
    classifier = DigitsClassifier.from_package()
    images, labels = load_digit_images(teacher.std)
    real_features = classifier.features(images)
    wanted = condition["label"]  # type: ignore[index]
    reference_features = classifier.features(reference)

    def per_class(
        x: Latents, label: Tensor, other: Latents, other_label: Tensor
    ) -> dict[str, float]:
        features = classifier.features(x)
        cosines, coverages, precisions = [], [], []
        for c in range(10):
            own, near = x[label == c][:200], other[other_label == c][:200]
            cosines.append(pairwise_cosine(features[label == c]))
            coverage, precision = coverage_and_precision(near.flatten(1), own.flatten(1))
            coverages.append(coverage)
            precisions.append(precision)
        return {
            "accuracy": float((classifier(x).argmax(1) == label).float().mean()),
            "feature_distance": frechet_distance(features, reference_features),
            "feature_distance_real": frechet_distance(features, real_features),
            "cosine": sum(cosines) / 10,
            "coverage": sum(coverages) / 10,
            "precision": sum(precisions) / 10,
        }

    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    half, rest = order[: len(order) // 2], order[len(order) // 2 :]
    real = per_class(images[half], labels[half], images[rest], labels[rest])
    real["feature_distance_real"] = frechet_distance(real_features[half], real_features[rest])
    rows = [{"method": "real", "nfe": 0, **real}]
    return lambda x: per_class(x, wanted, reference, wanted), rows


def _mixture(
    teacher: MixtureTeacher, condition: Condition, samples: int, seed: int
) -> tuple[Callable[[Latents], dict[str, float]], list[dict[str, Any]]]:
    generator = torch.Generator().manual_seed(seed + 100)
    truth = teacher.sample(samples, condition, generator=generator)
    fresh = teacher.sample(samples, condition, generator=generator)
    truth_log_prob = float(teacher.log_prob(truth, condition=condition).mean())
    means, modes, dim = teacher.means.float(), len(teacher.means), teacher.means.shape[1]

    def measure(x: Latents) -> dict[str, float]:
        distance = torch.cdist(x, means)
        if condition is not None and teacher.labels is not None:
            other = teacher.labels != condition["label"][:, None]
            distance = distance.masked_fill(other, torch.inf)
        nearest, mode = distance.min(1)
        std = teacher.stds[mode].float()
        hits = torch.bincount(mode[nearest < std * (math.sqrt(dim) + 2.13)], minlength=modes)
        log_prob = teacher.log_prob(x, condition=condition).clamp(min=-1e4).mean()
        return {
            "klh": mode_histogram_kl(mode, modes),
            "sw2": sliced_wasserstein(x, truth),
            "modes": float((hits > 0.1 * samples / modes).float().mean()),
            "log_likelihood_gap": float(log_prob) - truth_log_prob,
        }

    return measure, [{"method": "real", "nfe": 0, **measure(fresh)}]
