"""The check of teachers: what ships passes, and every check finds what it is for."""

import copy
import json
import textwrap

import pytest
import torch
from tensordict import TensorDict
from torch import nn

from pdmd import (
    CosineVP,
    Guided,
    LinearVP,
    MixtureTeacher,
    RectifiedFlow,
    Shifted,
    Teacher,
    VarianceExploding,
)
from pdmd.cli.main import main
from pdmd.conformance import CHECKS, check
from pdmd.teachers import WithSchedule
from pdmd.teachers.base import teachers
from pdmd.teachers.packaged.digits import DigitsTeacher
from tests.helpers import tiny_discrete, tiny_families, tiny_flows

FAMILIES = {
    **dict.fromkeys(tiny_families.FAMILIES, tiny_families.family),
    **dict.fromkeys(tiny_discrete.FAMILIES, tiny_discrete.family),
    **dict.fromkeys(tiny_flows.FLOWS, tiny_flows.flow),
}


class Small(Teacher):
    """A sound teacher of 16 numbers and three prompts; what follows breaks it somewhere."""

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


class Video(Small):
    """A sound teacher with pictures."""

    def decode(self, x):
        return x.sigmoid().reshape(-1, 1, 4, 4)


def broken(base=Small, **methods):
    return type("Broken", (base,), methods)


def sound(self, x_t, t, condition):
    return Small.network(self, x_t, t, condition)


class Hole(Small):
    def network(self, x_t, t, condition):
        return sound(self, x_t, t, condition).masked_fill((t == 1)[:, None], torch.nan)


class Narrow(Small):
    def network(self, x_t, t, condition):
        return sound(self, x_t, t, condition)[:, :8]


class Dropping(Small):
    def network(self, x_t, t, condition):
        return nn.functional.dropout(sound(self, x_t, t, condition), 0.1)


class DroppingInTraining(Small):
    def network(self, x_t, t, condition):
        return nn.functional.dropout(sound(self, x_t, t, condition), 0.1, self.training)


class Mixing(Small):
    def network(self, x_t, t, condition):
        value = sound(self, x_t, t, condition)
        return value - 0.1 * value.mean(0)


class Placed(Small):
    def network(self, x_t, t, condition):
        place = torch.arange(len(x_t))[:, None]
        return sound(self, x_t, t, condition) * (1 + 0.01 * place)


class FirstTime(Small):
    def network(self, x_t, t, condition):
        return sound(self, x_t, t[:1].expand(len(t)), condition)


class Detached(Small):
    def network(self, x_t, t, condition):
        return sound(self, x_t.detach(), t, condition) + 0.1 * x_t


class NoGrad(Small):
    @torch.no_grad()
    def network(self, x_t, t, condition):
        return sound(self, x_t, t, condition)


class Cancelling(Small):
    def network(self, x_t, t, condition):
        value = sound(self, x_t, t, condition)
        if torch.is_autocast_enabled("cpu"):
            value = ((value + 300).to(torch.bfloat16) - 300).float()
        return value


class OtherStart(Small):
    def trainable_copy(self):
        made = super().trainable_copy()
        with torch.no_grad():
            made.outside.bias.add_(0.1)
        return made


class OtherKind(Small):
    def trainable_copy(self):
        made = super().trainable_copy()
        made.kind = "velocity"
        return made


class OtherSchedule(Small):
    def trainable_copy(self):
        made = super().trainable_copy()
        made.schedule = LinearVP()
        return made


class Itself(Small):
    def trainable_copy(self):
        return self.requires_grad_(True)


class Frozen(Small):
    def trainable_copy(self):
        return copy.deepcopy(self)


class HalfTrained(Small):
    def network(self, x_t, t, condition):
        before = self.inside.weight.requires_grad
        for layer in (self.inside, self.text):
            layer.requires_grad_(False)
        value = sound(self, x_t, t, condition)
        for layer in (self.inside, self.text):
            layer.requires_grad_(before)
        return value


class Hidden(Small):
    """Its weights are no parameters; those it has do nothing."""

    def __init__(self):
        super().__init__()
        self.hidden = [copy.deepcopy(m) for m in (self.inside, self.text, self.outside)]

    def network(self, x_t, t, condition):
        inside, text, outside = self.hidden
        h = inside(torch.cat([x_t, t[:, None].to(x_t)], 1))
        return outside((h + text(condition["text"].sum(1))).tanh())


class Tied(Small):
    def __init__(self):
        super().__init__()
        self.again = nn.Linear(4, 24)
        self.again.weight = self.text.weight


class Sharing(Small):
    def __deepcopy__(self, memo):
        made = type(self)()
        for own, other in zip(made.parameters(), self.parameters(), strict=True):
            own.data = other.data
        return made


class BatchEncoding(Small):
    def encode(self, prompts):
        condition = super().encode(prompts)
        longest = condition["text"].shape[1]
        condition["text"] = condition["text"] / longest
        return condition


class NoNull(Small):
    def encode(self, prompts):
        return super().encode([p.lower() for p in prompts])


class OneRow(Small):
    def encode(self, prompts):
        return super().encode(prompts)[:1]


class OtherNull(Small):
    def network(self, x_t, t, condition):
        if condition is None:
            condition = self.encode(["zz"] * len(x_t))
        return sound(self, x_t, t, condition)


class GuideFromZero(Small):
    def guide(self, conditional, unconditional, scale):
        return conditional + scale * (conditional - unconditional)


class MaskedGuidance(Small):
    """Takes text for all rows to be as long as the longest, so that padding counts."""

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
BROKEN = [
    ("range", Hole, "at t = 1 the value is not finite"),
    ("range", Narrow, "shape"),
    ("range", lambda: MixtureTeacher(**MEANS, schedule=LinearVP()), "at t = 0 the value"),
    ("deterministic", Dropping, "two evaluations"),
    ("rows", Mixing, "apart, allowed"),
    ("rows", Placed, "rows permuted"),
    ("rows", FirstTime, "apart, allowed"),
    ("input gradient", Detached, "differences say"),
    ("input gradient", NoGrad, "does not require grad"),
    ("precision", Cancelling, "autocast is"),
    ("copy", DroppingInTraining, r"dropout\?"),
    ("copy", OtherStart, "apart, allowed"),
    ("copy", OtherKind, "the copy predicts velocity"),
    ("copy", OtherSchedule, "on LinearVP"),
    ("parameters", Itself, "shares weights with the teacher"),
    ("parameters", Frozen, "no parameter .* trains"),
    ("parameters", HalfTrained, "reaches 2 of 6"),
    ("state", Hidden, "does not depend on the registered"),
    ("state", Tied, "clone shared tensors"),
    ("state", Sharing, "shares weights with the teacher"),
    ("conditions", BatchEncoding, "encoded alone"),
    ("conditions", NoNull, "raised AttributeError"),
    ("conditions", OneRow, "batch size"),
    ("conditions", OtherNull, "no condition against encode"),
    ("guidance", GuideFromZero, r"guide\(\) at 1"),
    ("guidance", MaskedGuidance, "two evaluations"),
    ("schedule", lambda: Small(Rising()), "does not fall"),
    ("schedule", lambda: Small(BadInverse()), "off the time"),
    ("schedule", lambda: Small(BadSlope()), "derivatives are"),
    ("oracle", lambda: Small(BadSlope(), "velocity"), "from the data"),
    ("oracle", lambda: Small(Unclean()), "from the data"),
    ("plans", lambda: Small(time_range=(0.1, 0.9)), "t = 1, outside its range"),
    ("plans", lambda: Small(RectifiedFlow(), "epsilon"), "no step can be made"),
    ("samples", lambda: Reversed(**MEANS), "not 1"),
    ("samples", lambda: TimeOff(**MEANS), "not 1"),
    ("decode", lambda: broken(decode=lambda self, x: x.reshape(-1, 1, 4, 4))(), "not in"),
    ("decode", lambda: broken(decode=lambda self, x: x[:1].reshape(1, 1, 4, 4))(), "3 latents"),
]


def outcome(report, name):
    return next(o for o in report.outcomes if o.name == name)


@pytest.mark.parametrize(("name", "make", "found"), BROKEN)
def test_every_check_finds_what_it_is_for(name, make, found):
    import re

    report = check(make())
    assert name in report.failed and not report.passed, str(report)
    assert re.search(found, outcome(report, name).figures), outcome(report, name).figures


def test_every_check_has_a_teacher_that_fails_it():
    assert {name for name, *_ in BROKEN} == set(CHECKS)


SOUND = {
    "small": Small,
    "video": Video,
    "a narrow range": lambda: Small(time_range=(0.3, 1.0)),
    "x0 on VE": lambda: Small(VarianceExploding(5.0), "x0"),
    "shifted": lambda: Small(Shifted(RectifiedFlow(), 3.0), "velocity"),
    "epsilon": lambda: Small(LinearVP(), "epsilon"),
    "guided": lambda: Guided(Small(), 2.0),
    "digits": DigitsTeacher.from_package,
    "guided digits": lambda: Guided(DigitsTeacher.from_package(), 3.0),
    "on_schedule digits": lambda: WithSchedule(
        Guided(DigitsTeacher.from_package(), 3.0), CosineVP()
    ),
    "mixture": MixtureTeacher.random,
    "no classes": lambda: MixtureTeacher.random(classes=0, schedule=CosineVP()),
    "a on_schedule mixture": lambda: WithSchedule(MixtureTeacher.random(), CosineVP()),
}


@pytest.mark.parametrize("name", SOUND)
def test_sound_teachers_pass(name):
    report = check(SOUND[name]())
    assert report.passed, str(report)
    assert [o.name for o in report.outcomes] == list(CHECKS)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_passes(name):
    report = check(FAMILIES[name](name))
    assert report.passed, str(report)
    idle = {o.name for o in report.outcomes if o.passed is None}
    unconditional = {"conditions", "guidance"} if name.startswith("ddpm") else set()
    assert idle - {"decode"} == {"samples"} | unconditional


def test_what_does_not_apply_is_said():
    report = check(MixtureTeacher.random(classes=0))
    why = {o.name: o.figures for o in report.outcomes if o.passed is None}
    assert set(why) == {"copy", "parameters", "conditions", "guidance", "decode"}
    assert why["copy"] == "no weights; students take a network of their own"
    assert "n/a   guidance" in str(report)


def test_a_rebased_familys_own_guidance_is_left_within():
    teacher = tiny_families.family("qwen_image")
    report = check(WithSchedule(teacher, CosineVP(), kind="v_prediction"))
    assert report.passed and outcome(report, "guidance").passed is None


def test_the_teacher_is_left_as_it_was():
    teacher = Small()
    teacher.text.requires_grad_(False)
    teacher.train()
    teacher.outside.eval()
    before = copy.deepcopy(teacher.state_dict())
    state = torch.get_rng_state()
    assert check(teacher).passed
    assert torch.equal(torch.get_rng_state(), state)
    assert [p.requires_grad for p in teacher.parameters()] == [True] * 2 + [False] * 2 + [True] * 2
    assert teacher.training and teacher.inside.training and not teacher.outside.training
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters())
    assert teacher.precision == torch.float32


def test_prompts_may_be_given_and_must_be_some():
    seen = []

    class Hearing(Small):
        prompts = ()

        def encode(self, prompts):
            seen.extend(prompts)
            return super().encode(prompts)

    with pytest.raises(ValueError, match=r"no prompts to ask the teacher with; give prompts="):
        check(Hearing())
    with pytest.raises(ValueError, match="got the text 'dog'"):
        check(Hearing(), "dog")
    assert check(Hearing(), ["dog"]).passed
    assert set(seen) == {"dog", None}


def test_narrow_weights_are_held_to_less():
    teacher = Small()
    for parameter in teacher.parameters():
        parameter.data = parameter.data.bfloat16()
    teacher.network = lambda x, t, c: sound(copy.deepcopy(teacher).float(), x, t, c).bfloat16()
    report = check(teacher)
    assert "too narrow for differences" in outcome(report, "input gradient").figures
    assert outcome(report, "rows").passed


PLUGIN = """
    import torch
    from pdmd.teachers import register
    from tests.conformance.test_conformance import Mixing, Small

    @register("mine")
    def mine(*, broken: bool = False):
        return Mixing() if broken else Small()

    @register("asks")
    def asks(folder):
        return Small()
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    (tmp_path / "own_teachers_here.py").write_text(textwrap.dedent(PLUGIN))
    monkeypatch.syspath_prepend(tmp_path)
    yield ["--plugins", "own_teachers_here"]
    for name in ("mine", "asks"):
        if name in teachers:
            teachers.remove(name)
    import sys

    sys.modules.pop("own_teachers_here", None)


def test_the_command_checks_ones_own_teacher(plugin, capsys):
    assert main(["check", "mine", *plugin]) == 0
    out = capsys.readouterr().out.strip().splitlines()
    assert len(out) == len(CHECKS) + 1
    assert out[-1] == "mine: 13 passed, 0 failed, 2 do not apply"
    assert all(line[:4] in ("PASS", "n/a ") for line in out[:-1])
    assert main(["check", "mine", *plugin, "--arguments", "broken", "True"]) == 1
    out = capsys.readouterr().out
    assert "FAIL  rows" in out and "10 passed, 3 failed" in out


def test_the_command_takes_guidance_schedule_and_arguments(capsys):
    words = ["--arguments", "dim", "4", "classes", "2", "--guidance", "2"]
    assert main(["check", "mixture", *words, "--schedule", "cosine", "--prompts", "1", "0"]) == 0
    assert "steps of v_prediction" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "missing the teacher: see 'pdmd teachers'"),
        (["digts"], "did you mean 'digits'?"),
        (["mixture", "--arguments", "dims", "4"], "do not fit 'mixture'"),
        (["mixture", "--prompts", "99"], "prompt '99' is not a class"),
        (["mixture", "--seed", "-1"], "--seed is in"),
        (["mixture", "--schedule", "cosin"], "did you mean 'cosine'?"),
        (["mixture", "--plugins", "no_such_module"], "cannot import the plugin"),
    ],
)
def test_bad_words_are_one_line(words, named, capsys):
    assert main(["check", *words]) == 2
    error = capsys.readouterr().err.strip()
    assert named in error and "\n" not in error


def test_the_list_of_teachers_counts_parameters_and_survives_any_teacher(plugin, capsys):
    assert main(["teachers", *plugin]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    rows = {line.split()[0]: line for line in lines}
    assert lines[0].split() == ["name", "parameters", "predicts", "schedule", "latents", "times"]
    assert set(rows) == {"name", *teachers}
    assert rows["qwen_image"].split()[1:] == [
        "20.4B",
        "velocity",
        "RectifiedFlow",
        "16x128x128",
        "[0,",
        "1]",
    ]
    assert rows["sdxl"].split()[1:5] == ["2.6B", "epsilon", "DiscreteVP", "4x128x128"]
    assert rows["stable_diffusion"].endswith("[0.001, 1]") and "859.5M" in rows["stable_diffusion"]
    assert "35.7M" in rows["ddpm"] and "749.8M" in rows["dit"]
    assert rows["mixture"].split()[1] == "exact"
    assert rows["mine"].split()[1] == "952"
    assert "not built without arguments" in rows["asks"] and "folder" in rows["asks"]
    starts = {line.index(line.split()[2]) for line in lines if "not built" not in line}
    assert len(starts) == 1  # the columns line up
    assert main(["teachers", "digits"]) == 2
    assert json.dumps(capsys.readouterr().err).count("takes no more words") == 1
