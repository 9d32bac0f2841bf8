"""Teachers for conformance checks: sound ones, and one for each way to break a check."""

import copy
import re

import torch
from tensordict import TensorDict
from torch import nn

from pdmd import CosineVP, LinearVP, MixtureTeacher, Teacher
from pdmd.conformance import check


class SmallTeacher(Teacher):
    """A sound teacher with 16-dimensional latents and three prompts, which the others break."""

    def __init__(self, schedule=None, kind="v_prediction", time_range=(0.0, 1.0)):
        super().__init__(
            schedule=schedule or CosineVP(), kind=kind, latent_shape=(16,), time_range=time_range
        )
        torch.manual_seed(0)
        self.inside = nn.Linear(17, 24)
        self.text = nn.Linear(4, 24)
        self.outside = nn.Linear(24, 16)

    @property
    def prompts(self):
        return ["a", "bb", "cccc"]

    def encode(self, prompts):
        length = max([len(p) if p else 1 for p in prompts])
        rows = torch.zeros(len(prompts), length, 4)
        for i, prompt in enumerate(prompts):
            for j, letter in enumerate(prompt or ""):
                rows[i, j] = torch.sin(ord(letter) * torch.arange(1.0, 5.0))
        return TensorDict({"text": rows}, batch_size=[len(prompts)])

    def network(self, x_t, t, condition):
        text = self.encode([None] * len(x_t)) if condition is None else condition
        h = self.inside(torch.cat([x_t, t[:, None].to(x_t)], 1))
        return self.outside((h + self.text(text["text"].sum(1))).tanh())


class VideoTeacher(SmallTeacher):
    """A sound teacher with a decoder."""

    def decode(self, x):
        return x.sigmoid().reshape(-1, 1, 4, 4)


def broken(base=SmallTeacher, **methods):
    return type("Broken", (base,), methods)


def sound(self, x_t, t, condition):
    return SmallTeacher.network(self, x_t, t, condition)


class Hole(SmallTeacher):
    def network(self, x_t, t, condition):
        return sound(self, x_t, t, condition).masked_fill((t == 1)[:, None], torch.nan)


class Narrow(SmallTeacher):
    def network(self, x_t, t, condition):
        return sound(self, x_t, t, condition)[:, :8]


class Dropping(SmallTeacher):
    def network(self, x_t, t, condition):
        return nn.functional.dropout(sound(self, x_t, t, condition), 0.1)


class DroppingInTraining(SmallTeacher):
    def network(self, x_t, t, condition):
        return nn.functional.dropout(sound(self, x_t, t, condition), 0.1, self.training)


class DroppingTexts(SmallTeacher):
    """Sound in evaluation mode; its encoder has weights, and drops numbers in training."""

    def __init__(self):
        super().__init__()
        self.letters = nn.Linear(4, 4)

    def encode(self, prompts):
        condition = super().encode(prompts)
        rows = self.letters(condition["text"])
        return condition.replace({"text": nn.functional.dropout(rows, 0.5, self.training)})


class Mixing(SmallTeacher):
    def network(self, x_t, t, condition):
        value = sound(self, x_t, t, condition)
        return value - 0.1 * value.mean(0)


class Placed(SmallTeacher):
    def network(self, x_t, t, condition):
        place = torch.arange(len(x_t))[:, None]
        return sound(self, x_t, t, condition) * (1 + 0.01 * place)


class FirstTime(SmallTeacher):
    def network(self, x_t, t, condition):
        return sound(self, x_t, t[:1].expand(len(t)), condition)


class Clamping(SmallTeacher):
    def network(self, x_t, t, condition):
        return sound(self, x_t.clamp_(-1, 1), t, condition)


class Rounding(SmallTeacher):
    def network(self, x_t, t, condition):
        return sound(self, x_t, t.mul_(1000).round_().div_(1000), condition)


class Emptying(SmallTeacher):
    def network(self, x_t, t, condition):
        value = sound(self, x_t, t, condition)
        condition["text"] = torch.zeros_like(condition["text"])
        return value


class Widening(SmallTeacher):
    def network(self, x_t, t, condition):
        return sound(self, x_t, t, condition) * (1 + t[:, None])


class Detached(SmallTeacher):
    def network(self, x_t, t, condition):
        return sound(self, x_t.detach(), t, condition) + 0.1 * x_t


class NoGrad(SmallTeacher):
    @torch.no_grad()
    def network(self, x_t, t, condition):
        return sound(self, x_t, t, condition)


class Cancelling(SmallTeacher):
    def network(self, x_t, t, condition):
        value = sound(self, x_t, t, condition)
        if torch.is_autocast_enabled("cpu"):
            value = ((value + 300).to(torch.bfloat16) - 300).float()
        return value


class OtherStart(SmallTeacher):
    def trainable_copy(self):
        copied = super().trainable_copy()
        with torch.no_grad():
            copied.outside.bias.add_(0.1)
        return copied


class OtherKind(SmallTeacher):
    def trainable_copy(self):
        copied = super().trainable_copy()
        copied.kind = "velocity"
        return copied


class OtherSchedule(SmallTeacher):
    def trainable_copy(self):
        copied = super().trainable_copy()
        copied.schedule = LinearVP()
        return copied


class Itself(SmallTeacher):
    def trainable_copy(self):
        return self.requires_grad_(True)


class Frozen(SmallTeacher):
    def trainable_copy(self):
        return copy.deepcopy(self)


class HalfTrained(SmallTeacher):
    def network(self, x_t, t, condition):
        before = self.inside.weight.requires_grad
        for layer in (self.inside, self.text):
            layer.requires_grad_(False)
        value = sound(self, x_t, t, condition)
        for layer in (self.inside, self.text):
            layer.requires_grad_(before)
        return value


class Hidden(SmallTeacher):
    """Its weights are not registered, and the registered parameters have no effect."""

    def __init__(self):
        super().__init__()
        self.hidden = [copy.deepcopy(m) for m in (self.inside, self.text, self.outside)]

    def network(self, x_t, t, condition):
        inside, text, outside = self.hidden
        h = inside(torch.cat([x_t, t[:, None].to(x_t)], 1))
        return outside((h + text(condition["text"].sum(1))).tanh())


class Tied(SmallTeacher):
    def __init__(self):
        super().__init__()
        self.again = nn.Linear(4, 24)
        self.again.weight = self.text.weight


class Sharing(SmallTeacher):
    def __deepcopy__(self, memo):
        copied = type(self)()
        for own, other in zip(copied.parameters(), self.parameters(), strict=True):
            own.data = other.data
        return copied


class BatchEncoding(SmallTeacher):
    def encode(self, prompts):
        condition = super().encode(prompts)
        longest = condition["text"].shape[1]
        condition["text"] = condition["text"] / longest
        return condition


class Deaf(SmallTeacher):
    def network(self, x_t, t, condition):
        return sound(self, x_t, t, None)


class NoNull(SmallTeacher):
    def encode(self, prompts):
        return super().encode([p.lower() for p in prompts])


class OneRow(SmallTeacher):
    def encode(self, prompts):
        return super().encode(prompts)[:1]


class OtherNull(SmallTeacher):
    def network(self, x_t, t, condition):
        if condition is None:
            condition = self.encode(["zz"] * len(x_t))
        return sound(self, x_t, t, condition)


class GuideFromZero(SmallTeacher):
    def guide(self, conditional, unconditional, scale):
        return conditional + scale * (conditional - unconditional)


class IgnoredMask(SmallTeacher):
    """Ignores the mask: all texts count as long as the longest of the batch."""

    def network(self, x_t, t, condition):
        text = self.encode([None] * len(x_t)) if condition is None else condition
        value = sound(self, x_t, t, condition)
        return value * (1 + 0.1 * text["text"].shape[1])


class Rising(CosineVP):
    def log_snr(self, t):
        return -super().log_snr(t)


class BadInverse(CosineVP):
    def t_from_log_snr(self, log_snr):
        return super().t_from_log_snr(log_snr) ** 1.01


class BadSlope(CosineVP):
    def derivatives(self, t):
        d_alpha, d_sigma = super().derivatives(t)
        return d_alpha, 1.1 * d_sigma


class Unclean(CosineVP):
    def __call__(self, t):
        alpha, sigma = super().__call__(t)
        return alpha, 0.05 + 0.95 * sigma


class Reversed(MixtureTeacher):
    def network(self, x_t, t, condition):
        return -super().network(x_t, t, condition)


class TimeOff(MixtureTeacher):
    def network(self, x_t, t, condition):
        return super().network(x_t, 1 - 0.999 * t, condition)


MEANS = {"means": torch.eye(3), "stds": 0.3, "labels": torch.arange(3)}


def assert_fails(teacher, name, detail):
    """Asserts that a check fails with a detail that matches a pattern."""
    report = check(teacher, skip=[] if name == "score" else ["score"])  # which samples
    found = {o.name: o.detail for o in report.outcomes}[name]
    assert name in report.failed and not report.passed, str(report)
    assert re.search(detail, found), found
