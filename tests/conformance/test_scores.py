"""The score check names what is wrong with a network, on the teacher's own samples."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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
from pdmd.conformance.harness import NotApplicable, TeacherHarness
from pdmd.conformance.scores import calibrate_score, check_score
from pdmd.teachers import WithSchedule
from pdmd.teachers.base import teachers
from pdmd.teachers.families.discrete_timesteps import (
    LINEAR,
    SCALED_LINEAR,
    noise_levels,
    time_range_of,
)
from pdmd.teachers.packaged.digits import DigitsTeacher
from tests.helpers.broken_teachers import SmallTeacher, assert_fails


class Misdeclared(Teacher):
    """A teacher whose network is another's, under a wrong declaration."""

    def __init__(self, inner, *, sign=1, time=lambda t: t, schedule=None, kind=None):
        super().__init__(
            schedule=schedule or inner.schedule,
            kind=kind or inner.kind,
            latent_shape=inner.latent_shape,
            time_range=inner.time_range,
        )
        self.inner, self.sign, self.time = inner, sign, time

    @property
    def prompts(self):
        return self.inner.prompts

    def encode(self, prompts):
        return self.inner.encode(prompts)

    def network(self, x_t, t, condition):
        return self.sign * self.inner.network(x_t, self.time(t), condition)


FAULTS = {
    "sign": ({"sign": -1}, "its sign is reversed"),
    "time direction": ({"time": lambda t: 1 - t}, "its time runs the other way"),
    "time too small": ({"time": lambda t: t / 1000}, "with 1000 t"),
    "sign and time": ({"sign": -1, "time": lambda t: 1 - t}, "its sign and its time"),
    "epsilon": ({"kind": "epsilon"}, "its kind is wrong; as velocity"),
    "x0": ({"kind": "x0"}, "its kind is wrong; as velocity"),
    "v-prediction": ({"kind": "v_prediction"}, "its kind is wrong; as velocity"),
    "cosine": ({"schedule": CosineVP()}, "its schedule is wrong; on RectifiedFlow()"),
    "linear": ({"schedule": LinearVP()}, "its schedule is wrong; on RectifiedFlow()"),
    "shifted": ({"schedule": Shifted(RectifiedFlow(), 3.0)}, "its schedule is wrong"),
}
BROKEN = [
    ("score", lambda fault=fault: Misdeclared(MixtureTeacher.random(), **fault), detail)
    for fault, detail in FAULTS.values()
]


def declared(schedule, kind, time_range=(0.0, 1.0)):
    """Returns a mixture under the declaration of a family."""
    mixture = MixtureTeacher.random()
    teacher = MixtureTeacher(
        mixture.means, 0.3, labels=mixture.labels, schedule=schedule, kind=kind
    )
    teacher.time_range = time_range
    return teacher


def on_levels(**scheduler):
    """Returns a mixture on the noise levels that a scheduler of diffusers states."""
    schedule, kind = noise_levels({**SCALED_LINEAR, **scheduler})
    return declared(schedule, kind, time_range_of(schedule))


EDM = VarianceExploding(80.0, sigma_min=0.002)
FAMILIES = {
    "stable_diffusion": on_levels,
    "ddpm, dit": lambda: on_levels(**LINEAR),
    "cogvideox": lambda: on_levels(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, snr_shift_scale=3.0
    ),
    "edm": lambda: declared(EDM, "x0"),
    "wan, flux, qwen_image": lambda: declared(Shifted(RectifiedFlow(), 7.0), "velocity"),
}
FAMILY_FAULTS = [
    ("stable_diffusion", {"sign": -1}, "its sign is reversed"),
    ("stable_diffusion", {"schedule": CosineVP()}, "on the levels of Stable Diffusion"),
    ("edm", {"kind": "velocity"}, "its kind is wrong; as x0"),
]
RIGHT = {
    "mixture": MixtureTeacher.random,
    "cosine": lambda: MixtureTeacher.random(schedule=CosineVP()),
    "linear": lambda: MixtureTeacher.random(schedule=LinearVP()),
    "variance exploding": lambda: MixtureTeacher.random(schedule=VarianceExploding(80.0)),
    "shifted": lambda: MixtureTeacher.random(schedule=Shifted(RectifiedFlow(), 5.0)),
    "on another schedule": lambda: WithSchedule(MixtureTeacher.random(), CosineVP()),
    "guided": lambda: Guided(MixtureTeacher.random(), 4.0),
    "digits": DigitsTeacher.from_package,
    "fashion": lambda: teachers["fashion"](),
    "glyphs": lambda: teachers["glyphs"](),
    "clips": lambda: teachers["clips"](),
}


def checked(teacher):
    prompts = [teacher.prompts[i % len(teacher.prompts)] for i in range(3)]
    return check_score(TeacherHarness(teacher.requires_grad_(False).eval(), prompts, 0))


@pytest.mark.parametrize(("name", "build", "detail"), BROKEN, ids=[*FAULTS])
def test_the_fault_is_named(name, build, detail):
    with pytest.raises(Exception, match="noise slopes") as found:
        checked(build())
    assert detail in str(found.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_declarations_of_families_pass(family):
    assert "noise slopes" in checked(FAMILIES[family]())


@pytest.mark.parametrize(("family", "fault", "detail"), FAMILY_FAULTS)
def test_the_fault_in_the_declaration_of_a_family_is_named(family, fault, detail):
    with pytest.raises(Exception, match="noise slopes") as found:
        checked(Misdeclared(FAMILIES[family](), **fault))
    assert detail in str(found.value)


def test_a_teacher_with_a_fault_fails_its_check():
    build, detail = BROKEN[0][1:]
    assert_fails(build(), "score", detail)


def test_the_sign_of_a_trained_network_is_named():
    with pytest.raises(Exception, match="its sign is reversed"):
        checked(Misdeclared(DigitsTeacher.from_package(), sign=-1))


@pytest.mark.parametrize("name", RIGHT)
def test_the_right_declaration_passes(name):
    assert "noise slopes" in checked(RIGHT[name]())


def test_few_dimensions_do_not_leave_the_slopes_to_chance():
    angle = torch.arange(24) / 24 * 2 * torch.pi
    ring = MixtureTeacher(torch.stack([angle.cos(), angle.sin()], 1), 0.05)
    for seed in range(3):
        found = check_score(TeacherHarness(ring, [None] * 3, seed))
        low, high = (float(x) for x in re.findall(r"slopes (\S+) to (\S+),", found)[0])
        assert 0.95 < low <= high < 1.05, found


def test_untrained_weights_are_said_to_be_so():
    with pytest.raises(NotApplicable, match="are its weights trained"):
        checked(SmallTeacher())
    with pytest.raises(NotApplicable, match="does not reach from noise"):
        checked(SmallTeacher(time_range=(0.0, 0.9)))


def test_the_score_of_gaussian_samples_is_right_but_no_better_than_linear():
    gaussian = MixtureTeacher(torch.zeros(1, 96), 1.0)
    found = calibrate_score(gaussian, None, 32, torch.Generator().manual_seed(0), steps=200)
    assert found.right and not found.decided, str(found)


@settings(max_examples=10)
@given(st.floats(0.2, 10), st.integers(0, 100))
def test_calibration_does_not_depend_on_the_scale_of_the_data(scale, seed):
    torch.manual_seed(seed)
    means = 2 * torch.randn(4, 16)
    teacher = MixtureTeacher(scale * means, scale * 0.5, schedule=VarianceExploding(80.0))
    found = calibrate_score(teacher, None, 64, torch.Generator().manual_seed(seed), steps=48)
    assert found.right and found.decided, str(found)
