"""Distillation with flat settings, so that a test says in one line what it changes."""

from typing import Any

import pdmd
from pdmd import ExpertTraining, FakeScoreTraining, Rollouts, Session

GROUPS = {
    "experts": {
        "init": "initializer",
        "expert": "expert",
        "curriculum": "curriculum",
        "optimizer": "optimizer",
        "ema": "ema",
        "accumulate": "accumulate",
    },
    "rollouts": {
        "batch_size": "batch_size",
        "truncation": "truncation",
        "phase_inputs": "phase_inputs",
    },
    "fake_scores": {
        "fake_updates": "updates",
        "updates_per_rollout": "updates_per_rollout",
        "fake_accumulate": "accumulate",
        "scores": "scores",
        "fake_optimizer": "optimizer",
    },
    "session": {
        "runtime": "runtime",
        "recorder": "recorder",
        "checkpointer": "checkpointer",
        "resume": "resume",
        "account": "account",
        "max_consecutive_skips": "max_consecutive_skips",
    },
}
"""The argument of ``pdmd.distill`` that takes a setting, and the setting's name there."""

CLASSES = {
    "experts": ExpertTraining,
    "rollouts": Rollouts,
    "fake_scores": FakeScoreTraining,
    "session": Session,
}


def grouped(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments of ``pdmd.distill`` for flat settings; ``None`` is the default."""
    out = dict(settings)
    values: dict[str, dict[str, Any]] = {argument: {} for argument in GROUPS}
    for argument, names in GROUPS.items():
        for flat, name in names.items():
            if flat in out and (value := out.pop(flat)) is not None:
                values[argument][name] = value
    if "max_grad_norm" in out:
        norm = out.pop("max_grad_norm")
        values["experts"]["max_grad_norm"] = values["fake_scores"]["max_grad_norm"] = norm
    for argument, chosen in values.items():
        if chosen:
            out[argument] = CLASSES[argument](**chosen)
    return out


def distill(teacher, plan, prompts=None, **settings):
    settings.setdefault("progress", False)
    settings.setdefault("check_score", False)  # tests/distillation/test_notices.py checks it
    return pdmd.distill(teacher, plan, prompts, **grouped(settings))
