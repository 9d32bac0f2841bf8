"""Distillation on several ranks against one process: losses, gradients and weights."""

import pytest
import torch
from torch.distributed.tensor import DTensor

from pdmd import AdamRecipe, PhasePlan
from pdmd.diffusion.schedules import RectifiedFlow
from pdmd.distillation.adapters import LowRank
from pdmd.distillation.experts import FullGradient
from pdmd.distillation.initializers import LowRankRoles, PerStep
from pdmd.distributed import permutations
from pdmd.distributed.offload import Offload
from pdmd.distributed.runtime import OneProcess
from pdmd.distributed.state_layout import parameter_names
from pdmd.objectives import DistributionMatching, SubintervalScoreMatching
from pdmd.objectives.base import Objective
from pdmd.teachers import QwenImageTeacher, WanTeacher
from pdmd.teachers.base import Teacher
from pdmd.teachers.guided import Guided
from pdmd.teachers.mixture import encode_labels
from pdmd.teachers.packaged.digits import DigitsTeacher
from pdmd.teachers.packaged.mlp import MlpDenoiser
from pdmd.teachers.packaged.transformer import ImageTransformer
from pdmd.training.monitoring.recorder import Recorder
from tests.distributed.ranks import run_ranks
from tests.helpers.distilling import distill
from tests.helpers.tiny_families import QWEN, WAN

pytestmark = pytest.mark.distributed


def shaken(network):
    """Perturbs all parameters, because zeros would hide errors of gradients."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network


def digits():
    torch.manual_seed(0)
    transformer = ImageTransformer(width=32, depth=2, heads=4)
    return Guided(DigitsTeacher(shaken(transformer), std=0.7), 2.0)


class Perceptron(Teacher):
    """A teacher without a parallel plan."""

    def __init__(self):
        super().__init__(schedule=RectifiedFlow(), kind="velocity", latent_shape=(4,))
        torch.manual_seed(0)
        self.net = MlpDenoiser(dim=4, classes=3, width=16, schedule=RectifiedFlow())

    def network(self, x_t, t, condition):
        return self.net.network(x_t, t, condition)

    def encode(self, prompts):
        return encode_labels(prompts, 3)

    @property
    def prompts(self):
        return [0, 1, 2]


TEACHERS = {
    "digits": digits,
    "perceptron": Perceptron,
    "qwen_image": lambda: guided_family("qwen_image"),
    "wan": lambda: guided_family("wan"),
}


def guided_family(name):
    cls, arguments = {"qwen_image": (QwenImageTeacher, QWEN), "wan": (WanTeacher, WAN)}[name]
    arguments = {**arguments, "num_attention_heads": 4, "text_length": 8}
    return Guided(shaken(cls.from_config(**arguments)), 2.0)


class LossRecorder(Recorder):
    """Records the losses of every update."""

    interval = 1

    def __init__(self):
        self.losses = []

    def on_scalars(self, phase, update, values):
        self.losses.append({k: v for k, v in values.items() if not k.endswith("_recomputed")})


def train(runtime, name, more=None):
    """Distills for a few cycles; returns losses, whole gradients and the student's weights."""
    gradients, clip = [], runtime.optimization.clip_gradients

    def keep(network, parameters, max_grad_norm):
        orders = {}
        for parameter, key in parameter_names(network).items():
            if key in permutations(network):
                orders[parameter] = permutations(network)[key]
        for parameter in parameters:
            gradient = parameter.grad
            if isinstance(gradient, DTensor):
                gradient = gradient.full_tensor()
            if gradient is None:  # unused, as the text output of Qwen-Image's last block is, or
                gradient = torch.zeros(parameter.shape)  # the network that was not drawn
            elif parameter in orders:
                dim, order = orders[parameter]
                gradient = gradient.index_select(dim, order)
            gradients.append(gradient.detach().clone())
        return clip(network, parameters, max_grad_norm)

    runtime.optimization.clip_gradients = keep
    recorder = LossRecorder()
    settings = dict(plan=PhasePlan.uniform(2, steps=2), updates=2, fake_updates=2)
    student = distill(
        TEACHERS[name](),
        **{**settings, **(more or {})},
        batch_size=8,
        optimizer=AdamRecipe(lr=1e-4),
        fake_optimizer=AdamRecipe(lr=1e-4),
        generator_objective=DistributionMatching(),
        fake_objective=SubintervalScoreMatching(),
        ema=0.5,
        recorder=recorder,
        runtime=runtime,
    )
    return recorder.losses, gradients, runtime.states.full(student)


def on_ranks(cases):
    from pdmd.distributed.titan import TitanRuntime

    results = []
    for name, degrees, more in cases:
        try:
            results.append(train(TitanRuntime(**degrees), name, more))
        except Exception as error:
            raise RuntimeError(f"{name} {degrees} {more}") from error
    return results


def furthest(got, expected, least=0.0):
    return float((got - expected).abs().max() / expected.abs().max().clamp_min(max(least, 1e-12)))


def compare(world, cases):
    results, known = run_ranks(on_ranks, world, cases), {}
    for i, (name, degrees, more) in enumerate(cases):
        key = f"{name} {more}"
        if key not in known:
            known[key] = train(OneProcess(), name, more)
        losses, gradients, weights = known[key]
        for rank in range(world):
            got, where = results[rank][i], f"{name} {degrees} {more} on rank {rank}"
            assert len(losses) == len(got[0]) > 0 and len(gradients) == len(got[1]) > 0
            for expected, actual in zip(losses, got[0], strict=True):
                assert actual == pytest.approx(expected, rel=1e-5, abs=1e-10), where
            # small gradients are sums of large terms, with their rounding errors
            least = 1e-3 * max(float(g.abs().max()) for g in gradients)
            for j, (expected, actual) in enumerate(zip(gradients, got[1], strict=True)):
                assert furthest(actual, expected, least) < 5e-6 * world, f"{where}: gradient {j}"
            assert weights.keys() == got[2].keys()
            for name_, expected in weights.items():  # Adam amplifies errors of small gradients
                off = furthest(got[2][name_], expected)
                if "init" in more:  # factors initialized to zero are sums of Adam's steps
                    apart = (got[2][name_] - expected).norm() / expected.norm().clamp_min(1e-12)
                    off = float(apart) / 10
                assert off < 1e-4, f"{where}: {name_}"


VANILLA = {"plan": PhasePlan.uniform(1, steps=3), "truncation": FullGradient()}


def test_two_ranks_train_as_one_process_does():
    compare(
        2,
        [
            ("digits", {}, {}),
            ("digits", {"dp_replicate": 2}, {}),
            ("digits", {"tp": 2}, {}),
            ("digits", {"cp": 2}, {}),
            ("digits", {"cp": 2}, VANILLA),
            ("digits", {"tp": 2, "activation_checkpointing": "full"}, VANILLA),
            ("perceptron", {}, {}),
        ],
    )


@pytest.mark.parametrize("name", [pytest.param("qwen_image", marks=pytest.mark.slow), "wan"])
def test_two_ranks_train_families_as_one_process_does(name):
    compare(2, [(name, {}, {}), (name, {"tp": 2}, {}), (name, {"cp": 2}, {})])


ADAPTERS = LowRankRoles(LowRank(rank=3, alpha=6), LowRank(rank=2, alpha=4))
FULL_FAKE = LowRankRoles(LowRank(rank=3, alpha=6))
EVERYWHERE = LowRankRoles(LowRank(rank=2, targets=("*",)), LowRank(rank=2, targets=("*",)))
ROUTED = {"init": PerStep(ADAPTERS), "plan": PhasePlan.uniform(1, steps=2)}


def test_two_ranks_train_adapters_as_one_process_does():
    compare(
        2,
        [
            ("digits", {}, {"init": ADAPTERS}),
            ("digits", {"activation_checkpointing": "full"}, {"init": FULL_FAKE, **VANILLA}),
            ("digits", {"tp": 2}, {"init": EVERYWHERE}),
            ("digits", {"cp": 2}, {"init": EVERYWHERE}),
            ("digits", {"dp_replicate": 2}, ROUTED),
            ("digits", {}, {"init": ADAPTERS, "accumulate": 2, "fake_accumulate": 2}),
            ("perceptron", {}, {"init": ADAPTERS}),
        ],
    )


def compiled(degrees, more):
    from pdmd.distributed import compilation
    from pdmd.distributed.titan import TitanRuntime

    compilation.BACKEND = "eager"  # traces what inductor would compile
    return train(TitanRuntime(compile=True, **degrees), "digits", more)


@pytest.mark.slow
@pytest.mark.parametrize("degrees", [{"activation_checkpointing": "full"}, {"tp": 2}])
def test_two_ranks_compile_blocks_under_adapters(degrees):
    more = {"init": ADAPTERS, "plan": PhasePlan.uniform(1), "fake_updates": 1, "updates": 1}
    losses, gradients, _ = train(OneProcess(), "digits", more)
    got = run_ranks(compiled, 2, degrees, more)[0]
    least = 1e-3 * max(float(g.abs().max()) for g in gradients)
    for expected, actual in zip(losses, got[0], strict=True):
        assert actual == pytest.approx(expected, rel=1e-5, abs=1e-10)
    for expected, actual in zip(gradients, got[1], strict=True):
        assert furthest(actual, expected, least) < 1e-5


def in_8_bits(degrees):
    from pdmd.distributed.titan import TitanRuntime

    runtime = OneProcess() if degrees is None else TitanRuntime(**degrees)
    recipe = AdamRecipe(lr=1e-4, bits=8)
    student = distill(
        digits(),
        PhasePlan.uniform(1),
        updates=3,
        fake_updates=2,
        batch_size=8,
        optimizer=recipe,
        fake_optimizer=recipe,
        runtime=runtime,
    )
    return runtime.states.full(student)


def test_two_ranks_store_the_8_bit_moments_of_one_process():
    pytest.importorskip("torchao")
    expected = in_8_bits(None)
    got = run_ranks(in_8_bits, 2, {"offload": Offload(optimizers=True)})[0]
    for name, value in expected.items():
        assert furthest(got[name], value) < 1e-4, name
    with pytest.raises(RuntimeError, match="8 bits do not support tensor parallelism"):
        run_ranks(in_8_bits, 2, {"tp": 2})


class Failing(Objective):
    """Wraps an objective, with NaN losses at some calls, counted from 1."""

    def __init__(self, inner, at):
        self.inner, self.at, self.calls = inner, at, 0

    def losses(self, models, rollout, generator):
        self.calls += 1
        losses = self.inner.losses(models, rollout, generator)
        wrong = float("nan") if self.calls in self.at else 1.0
        return {name: wrong * loss for name, loss in losses.items()}


class Warnings(Recorder):
    def __init__(self):
        self.warnings = []

    def on_skipped_step(self, warning):
        self.warnings.append(warning.split(":")[0])


def skipping(degrees):
    """Distills with skipped updates: the first and a later one of both roles."""
    from pdmd.distributed.titan import TitanRuntime

    recorder = Warnings()
    runtime = OneProcess() if degrees is None else TitanRuntime(**degrees)
    student = distill(
        digits(),
        PhasePlan.uniform(2),
        updates=3,
        fake_updates=2,
        batch_size=8,
        optimizer=AdamRecipe(lr=1e-4),
        generator_objective=Failing(DistributionMatching(), {1, 5}),
        fake_objective=Failing(SubintervalScoreMatching(), {1, 4}),
        recorder=recorder,
        max_consecutive_skips=2,
        runtime=runtime,
    )
    return runtime.states.full(student), recorder.warnings


@pytest.mark.parametrize("degrees", [{}, {"tp": 2}], ids=["fsdp", "tp"])
def test_ranks_skip_the_updates_that_one_process_skips(degrees):
    weights, warnings = skipping(None)
    assert warnings == [
        *("phase 1, update 1", "phase 1, update 1", "phase 1, update 2", "phase 2, update 2"),
    ]
    got = run_ranks(skipping, 2, degrees)
    assert got[0][1] == warnings  # reported by the main rank
    for name, expected in weights.items():
        assert furthest(got[0][0][name], expected) < 1e-4, name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen_image", "wan"])
def test_two_ranks_train_families_adapters_as_one_process_does(name):
    degrees = ({}, {"tp": 2}, {"cp": 2}, {"activation_checkpointing": "full"})
    compare(2, [(name, degree, {"init": ADAPTERS}) for degree in degrees])


@pytest.mark.slow
def test_four_ranks_train_adapters_as_one_process_does():
    degrees = ({"tp": 2}, {"cp": 2, "tp": 2}, {"tp": 2, "activation_checkpointing": "full"})
    cases = [("qwen_image", degree, {"init": ADAPTERS}) for degree in degrees]
    compare(4, [*cases, ("wan", {"cp": 2, "tp": 2}, {"init": FULL_FAKE})])


@pytest.mark.slow
def test_four_ranks_train_as_one_process_does():
    compare(
        4,
        [
            ("digits", {"tp": 2}, {}),
            ("digits", {"cp": 2, "tp": 2}, {}),
            ("digits", {"cp": 2}, VANILLA),
            ("digits", {"dp_replicate": 2}, {"accumulate": 2}),
            ("digits", {"tp": 2, "activation_checkpointing": "full"}, VANILLA),
            *(
                (name, degrees, {})
                for name in ("qwen_image", "wan")
                for degrees in ({"tp": 2}, {"cp": 2, "tp": 2}, {"dp_replicate": 2})
            ),
        ],
    )


OTHERWISE = (
    ({"activation_checkpointing": "selective"}, 1e-5),
    ({"compile": True}, 1e-4),
    ({"precision": torch.bfloat16}, 2e-2),
    ({"precision": torch.bfloat16, "tp": 2}, 2e-2),
    ({"precision": torch.bfloat16, "cp": 2, "activation_checkpointing": "full"}, 2e-2),
)


@pytest.mark.slow
def test_two_ranks_recompute_compile_and_round_to_the_same_losses():
    cases = [("digits", degrees, {}) for degrees, _ in OTHERWISE]
    losses, _, _ = train(OneProcess(), "digits")
    for got, (degrees, tolerance) in zip(run_ranks(on_ranks, 2, cases)[0], OTHERWISE, strict=True):
        for expected, actual in zip(losses, got[0], strict=True):
            assert actual == pytest.approx(expected, rel=tolerance), degrees
        assert all(value.dtype == torch.float32 for value in got[2].values())
