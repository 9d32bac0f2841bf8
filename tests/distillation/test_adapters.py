import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pdmd import (
    AdamRecipe,
    AdaptedDenoiser,
    FromDenoiser,
    FromPrevious,
    FromTeacher,
    Guided,
    IntervalRouter,
    LowRank,
    LowRankRoles,
    MixtureTeacher,
    MlpDenoiser,
    PhasePlan,
    RoutedDenoiser,
)
from pdmd.distillation.adapters import adapt, adapted_parts, layers_of
from pdmd.distillation.initializers import Initializer
from pdmd.distributed.optimization import LocalOptimization
from pdmd.distributed.runtime import OneProcess
from pdmd.teachers.packaged.digits import DigitsTeacher
from pdmd.teachers.packaged.transformer import ImageTransformer
from pdmd.training.checkpoints.checkpointer import Checkpointer, Interrupted
from pdmd.training.ema import Ema
from pdmd.training.monitoring.accounting import Account
from pdmd.training.monitoring.recorder import Recorder
from tests.helpers.distilling import distill
from tests.helpers.tiny_families import FAMILIES

FOUR = LowRank(rank=4, alpha=8.0)
TWO = LowRank(rank=2, alpha=3.0, targets=("to_q", "to_v"))
TWO_DIGITS = LowRank(rank=2, alpha=3.0, targets=("qkv",))


def shaken(network, seed=1):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network


def teacher_of(name):
    cls, arguments = FAMILIES[name]
    return shaken(cls.from_config(**arguments))


def digits():
    torch.manual_seed(0)
    return DigitsTeacher(shaken(ImageTransformer(width=32, depth=2, heads=4)), std=0.7)


def asked(denoiser, teacher, seed=0, t=0.6):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, *teacher.latent_shape, generator=generator)
    condition = teacher.encode(list(teacher.prompts)[:2])
    return denoiser(x, torch.tensor([t, t - 0.1], dtype=torch.float64), condition).value


class Apart(Initializer):
    """The same roles, each over a copy of the base that is its own."""

    def __init__(self, inner):
        self.inner = inner

    def expert(self, teacher, phase, finished):
        return self._apart(self.inner.expert(teacher, phase, finished))

    def fake(self, teacher, phase):
        return self._apart(self.inner.fake(teacher, phase))

    def _apart(self, denoiser):
        for part in adapted_parts(denoiser):
            part.over(copy.deepcopy(part.base))
        return denoiser


class Gradients(LocalOptimization):
    """Keeps the gradient of every update."""

    def __init__(self):
        self.gradients = []

    def clip_gradients(self, network, max_grad_norm):
        self.gradients += [
            torch.zeros(()) if p.grad is None else p.grad.clone() for p in network.parameters()
        ]
        return super().clip_gradients(network, max_grad_norm)


class Losses(Recorder):
    interval = 1

    def __init__(self):
        self.values = []

    def on_scalars(self, phase, update, values):
        self.values.append({k: v for k, v in values.items() if not k.endswith("_recomputed")})


def run(teacher, init, *, activation_checkpointing=False, **more):
    runtime = OneProcess(activation_checkpointing=activation_checkpointing)
    runtime.optimization, recorder = Gradients(), Losses()
    student = distill(
        teacher,
        PhasePlan.uniform(2, steps=2),
        **{
            "init": init,
            "updates": 2,
            "fake_updates": 2,
            "batch_size": 4,
            "optimizer": AdamRecipe(lr=1e-2),
            "ema": 0.5,
            "recorder": recorder,
            "runtime": runtime,
            **more,
        },
    )
    return recorder.values, runtime.optimization.gradients, student


def same(a, b):
    assert a[0] == b[0] and len(a[0]) > 0
    assert len(a[1]) == len(b[1]) > 0
    assert all(torch.equal(x, y) for x, y in zip(a[1], b[1], strict=True))
    assert any(bool(x.any()) for x in a[1])
    ours, theirs = a[2].state_dict(), b[2].state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


ROLES = {
    "both": (FOUR, TWO),
    "generator": (FOUR, None),
    "fake": (None, FOUR),
}


@pytest.mark.parametrize("roles", ROLES)
@pytest.mark.parametrize("name", ["qwen_image", "wan_2.2_a14b"])
def test_roles_over_one_base_train_as_separate_copies_do(name, roles):
    teacher, init = Guided(teacher_of(name), 2.0), LowRankRoles(*ROLES[roles])
    apart = run(teacher, Apart(init))
    same(run(teacher, init), apart)
    same(run(teacher, init, activation_checkpointing=True), apart)


def test_recomputation_without_the_adapter_of_the_forward_is_wrong(monkeypatch):
    from torch.utils.checkpoint import noop_context_fn

    from pdmd.distributed import activation_checkpointing

    teacher = digits()

    def gradients():
        adapted = shaken(AdaptedDenoiser(teacher, FOUR, seed=0))
        teacher(torch.zeros(1, 1, 8, 8), 0.5)
        asked(adapted, teacher).square().sum().backward()
        return [p.grad for p in adapted.parameters()]

    right = gradients()
    activation_checkpointing.checkpoint_units(teacher)
    assert all(torch.equal(a, b) for a, b in zip(gradients(), right, strict=True))
    monkeypatch.setattr(activation_checkpointing, "checkpoint_contexts", noop_context_fn)
    with pytest.raises(Exception, match="different number of tensors"):
        gradients()


def test_recomputed_networks_are_plain_again_after_a_run():
    teacher = teacher_of("qwen_image")
    before = [type(m) for m in teacher.modules()]
    _, _, student = run(
        teacher, LowRankRoles(FOUR, None), activation_checkpointing=True, updates=1
    )
    assert [type(m) for m in teacher.modules()] == before
    assert [type(m) for m in adapted_parts(student)[0].base.modules()] == before


def test_full_weights_recompute_to_the_same_bits():
    teacher = teacher_of("wan_2.1")
    same(run(teacher, FromTeacher(), activation_checkpointing=True), run(teacher, FromTeacher()))


@pytest.mark.parametrize("name", ["qwen_image", "wan_2.2_a14b"])
def test_the_teacher_stays_while_adapters_train(name):
    teacher = teacher_of(name)
    before, weights = asked(teacher, teacher), copy.deepcopy(teacher.state_dict())
    _, _, student = run(teacher, LowRankRoles(FOUR, TWO))
    assert torch.equal(asked(teacher, teacher), before)
    assert all(torch.equal(v, weights[k]) for k, v in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters())
    base = {id(p) for p in teacher.parameters()}
    adapters = adapted_parts(student)
    assert {id(p) for a in adapters for p in a.base.parameters()} <= base
    assert not base & {id(p) for p in student.parameters()}
    moved = asked(student.experts[1].denoiser, teacher)
    assert not torch.equal(moved, asked(teacher.part(0.5, 0.0), teacher))


def test_a_gradient_reaches_the_factors_of_the_called_network_alone():
    teacher = digits()
    one, other = (shaken(AdaptedDenoiser(teacher, FOUR, seed=s), s) for s in (0, 1))
    asked(one, teacher).square().sum().backward()
    assert all(bool(p.grad.any()) for p in one.parameters())
    assert all(p.grad is None for p in (*teacher.parameters(), *other.parameters()))


def test_a_network_in_one_process_answers_by_who_is_called():
    teacher = digits()
    plain = asked(teacher, teacher)
    fresh = AdaptedDenoiser(teacher, FOUR, seed=0)
    assert torch.equal(asked(fresh, teacher), plain)  # B starts at zero
    changed = asked(shaken(fresh), teacher)
    assert not torch.equal(changed, plain)
    assert torch.equal(asked(teacher, teacher), plain)
    assert torch.equal(asked(fresh, teacher), changed)


@pytest.mark.parametrize(("name", "tower"), [("qwen_image", 0), ("wan_2.2_a14b", 1)])
@pytest.mark.parametrize("spec", [FOUR, TWO], ids=["all", "targets"])
def test_outputs_agree_with_peft(name, tower, spec):
    from peft import LoraConfig, inject_adapter_in_model

    teacher = teacher_of(name)
    part = teacher.routed.denoisers[tower] if name.startswith("wan") else teacher
    ours = shaken(AdaptedDenoiser(part, spec, seed=0))
    names = [path.removeprefix("backbone.") for path in ours.factors()]
    config = LoraConfig(r=spec.rank, lora_alpha=spec.alpha, target_modules=names)
    theirs = part.trainable_copy()
    theirs.backbone = inject_adapter_in_model(config, theirs.backbone)
    state = theirs.state_dict()
    for key, value in ours.state_dict().items():
        path, _, factor = key.rpartition(".lora_")
        state[f"{path}.lora_{factor.replace('.weight', '.default.weight')}"] = value
    theirs.load_state_dict(state)
    wanted = asked(theirs, teacher)
    assert not torch.allclose(wanted, asked(part, teacher), atol=1e-3)
    torch.testing.assert_close(asked(ours, teacher), wanted, rtol=0, atol=1e-6)


@given(
    rank=st.integers(1, 12),
    alpha=st.floats(0.1, 64),
    targets=st.sampled_from([(), ("0", "2"), ("layers.4",), ("layers.[0-4]",)]),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=40)
def test_the_merged_network_is_the_adapted_one(rank, alpha, targets, seed):
    torch.manual_seed(seed % 1000)
    base = MlpDenoiser.rectified_flow(dim=3, width=8)
    weights = copy.deepcopy(base.state_dict())
    adapted = shaken(
        AdaptedDenoiser(base, LowRank(rank=rank, alpha=alpha, targets=targets), seed=seed),
        seed % 7,
    )
    merged = adapted.merged()
    x, t = torch.randn(5, 3), torch.rand(5)
    with torch.no_grad():
        a, b = adapted(x, t).value, merged(x, t).value
    torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-5 * float(b.abs().max() + 1))
    assert all(torch.equal(v, weights[k]) for k, v in base.state_dict().items())
    assert all(p.requires_grad for p in merged.parameters())
    for path, factors in adapted.requires_grad_(False).factors().items():
        change = merged.state_dict()[f"{path}.weight"] - weights[f"{path}.weight"]
        low = alpha / rank * factors.lora_B.weight @ factors.lora_A.weight
        torch.testing.assert_close(change, low, rtol=1e-4, atol=1e-4 * float(low.abs().max() + 1))
    untouched = set(weights) - {f"{path}.weight" for path in adapted.factors()}
    assert all(torch.equal(merged.state_dict()[k], weights[k]) for k in untouched)


def test_copies_share_the_base_and_nothing_else():
    teacher = digits()
    adapted = shaken(AdaptedDenoiser(teacher, FOUR, seed=0))
    average = Ema(torch.nn.ModuleDict({"0": adapted}), 0.5).network["0"]
    copied = adapted.trainable_copy()
    routed = copy.deepcopy(RoutedDenoiser([adapted, copied], IntervalRouter((1.0, 0.5, 0.0))))
    for one in (average, copied, *routed.denoisers):
        assert one.base is teacher
        assert not {id(p) for p in one.parameters()} & {id(p) for p in adapted.parameters()}
    kept = asked(adapted, teacher)
    shaken(copied, 5)
    assert torch.equal(asked(adapted, teacher), kept)
    assert torch.equal(asked(average, teacher), kept)
    assert not torch.equal(asked(copied, teacher), kept)


def test_a_copied_base_can_be_named():
    teacher = digits()
    adapted = shaken(AdaptedDenoiser(teacher, FOUR, seed=0))
    memo: dict = {}
    other = copy.deepcopy(teacher, memo)
    moved = copy.deepcopy(adapted, memo)
    assert moved.base is other
    assert torch.equal(asked(moved, teacher), asked(adapted, teacher))


def test_a_base_keeps_its_type_and_its_factors_theirs():
    teacher = digits().to(torch.bfloat16)
    for precision, activation_checkpointing in ((torch.float32, False), (torch.bfloat16, True)):
        runtime = OneProcess(
            precision=precision, activation_checkpointing=activation_checkpointing
        )
        runtime.optimization = Gradients()
        teacher.transformer.to(torch.bfloat16 if precision == torch.bfloat16 else torch.float32)
        student = distill(
            teacher,
            PhasePlan.uniform(1),
            init=LowRankRoles(FOUR, FOUR),
            updates=1,
            fake_updates=1,
            batch_size=4,
            runtime=runtime,
        )
        assert {p.dtype for p in student.parameters()} == {torch.float32}
        assert {g.dtype for g in runtime.optimization.gradients} == {torch.float32}


def test_a_call_for_another_role_is_not_the_teachers():
    counts = []
    for init in (LowRankRoles(FOUR, TWO_DIGITS), Apart(LowRankRoles(FOUR, TWO_DIGITS))):
        account = Account()
        run(digits(), init, account=account)
        counts.append(account.state())
    assert counts[0] == counts[1]
    assert counts[0]["forward"]["teacher"] > 0


class Stop(Recorder):
    def __init__(self, checkpointer, after):
        self.checkpointer, self.after = checkpointer, after

    def on_update(self, update):
        self.after -= 1
        self.checkpointer.stop_requested = self.after == 0


@pytest.mark.parametrize("start", [FromTeacher(), FromPrevious()], ids=["teacher", "previous"])
def test_a_resumed_run_ends_in_the_same_bits(tmp_path, start):
    teacher, init = teacher_of("wan_2.2_a14b"), LowRankRoles(FOUR, TWO, start=start)
    whole = run(teacher, init)[2].state_dict()
    for stop in (1, 2, 0):
        checkpointer = Checkpointer(tmp_path / "checkpoint", every=1)
        try:
            student = run(
                teacher,
                init,
                checkpointer=checkpointer,
                recorder=Stop(checkpointer, stop),
                resume=checkpointer.exists(),
            )[2]
        except Interrupted:
            assert stop
    assert all(torch.equal(v, whole[k]) for k, v in student.state_dict().items())


def test_an_adapter_may_start_at_the_one_before():
    teacher = teacher_of("wan_2.2_a14b")
    init = LowRankRoles(FOUR, start=FromPrevious())
    plan = PhasePlan.from_timesteps([1, 0.875, 0])
    first = init.expert(teacher, plan[0], [])
    assert first.base is teacher.routed.denoisers[0]
    from pdmd import OdeExpert

    second = init.expert(teacher, plan[1], [OdeExpert(shaken(first), plan[0])])
    assert second.base is teacher.routed.denoisers[1]  # its phase's, as it is saved and exported
    assert all(
        torch.equal(v, second.state_dict()[k]) and v is not second.state_dict()[k]
        for k, v in first.state_dict().items()
    )


def test_a_phase_of_two_networks_adapts_both():
    teacher = teacher_of("wan_2.2_a14b")
    both = adapt(teacher.part(0.9, 0.5), FOUR, seed=3)
    assert [part.base for part in adapted_parts(both)] == list(teacher.routed.denoisers)
    assert torch.equal(asked(both, teacher, t=0.9), asked(teacher, teacher, t=0.9))
    a, b = (p.state_dict() for p in adapted_parts(both))
    assert not torch.equal(next(iter(a.values())), next(iter(b.values())))  # seeds of their own


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (dict(rank=0), "rank.*got 0"),
        (dict(rank=1.5), "rank.*got 1.5"),
        (dict(rank=True), "rank.*got True"),
        (dict(alpha=0), "alpha.*got 0"),
        (dict(alpha=float("nan")), "alpha.*nan"),
        (dict(targets="to_q"), "'to_q'"),
        (dict(targets=("",)), "targets"),
    ],
)
def test_adapters_out_of_range_are_refused(arguments, named):
    with pytest.raises(ValueError, match=named):
        LowRank(**arguments)


def test_targets_are_paths_or_their_ends():
    teacher = teacher_of("wan_2.1")
    every = set(layers_of(teacher))
    assert every == {
        p for p, m in teacher.named_modules() if isinstance(m, torch.nn.Linear) and ".blocks." in p
    }
    ends = layers_of(teacher, ("to_q", "attn1.to_out.0"))
    assert {p.split("blocks.")[1][2:] for p in ends} == {
        "attn1.to_q",
        "attn2.to_q",
        "attn1.to_out.0",
    }
    first = layers_of(teacher, ("backbone.blocks.0.*",))
    assert first.keys() == {p for p in every if p.startswith("backbone.blocks.0.")}
    assert list(layers_of(teacher, ("proj_out",))) == ["backbone.proj_out"]
    with pytest.raises(ValueError, match="'q_proj' matches no linear layer.*to_q"):
        AdaptedDenoiser(teacher, LowRank(targets=("to_q", "q_proj")), seed=0)


def test_what_cannot_be_adapted_is_refused():
    teacher = teacher_of("qwen_image")
    adapted = AdaptedDenoiser(teacher, FOUR, seed=0)
    with pytest.raises(ValueError, match="adapted already.*merged"):
        AdaptedDenoiser(adapted, FOUR, seed=0)
    teacher.backbone.enable_gradient_checkpointing()
    with pytest.raises(ValueError, match="disable_gradient_checkpointing"):
        asked(adapted, teacher)
    mixture = MixtureTeacher.random(dim=2, classes=2)
    with pytest.raises(ValueError, match="MixtureTeacher has no weights to adapt"):
        distill(mixture, PhasePlan.uniform(1), init=LowRankRoles(FOUR), updates=1)
    network = MlpDenoiser.rectified_flow(dim=2, classes=2, width=8)
    over = LowRankRoles(LowRank(rank=2), LowRank(rank=2), start=FromDenoiser(network))
    student = distill(mixture, PhasePlan.uniform(1), init=over, updates=1, batch_size=4)
    assert adapted_parts(student)[0].base is network


def test_factors_are_those_of_their_seed():
    teacher = digits()
    state = [AdaptedDenoiser(teacher, FOUR, seed=s).state_dict() for s in (0, 0, 1)]
    torch.rand(3)
    for key, value in state[0].items():
        assert torch.equal(value, state[1][key])
        if key.endswith("lora_A.weight"):
            assert not torch.equal(value, state[2][key])
            bound = value.shape[1] ** -0.5
            assert 0.8 * bound < float(value.abs().max()) <= bound
        else:
            assert not value.any()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--lora.alpha", "4"], "lora.alpha = 4.0 says nothing with lora.rank = 0, which trains"),
        (["--lora.targets", "to_q"], "lora.targets = ('to_q',) says nothing with lora.rank = 0"),
        (
            ["--lora.rank", "2", "--lora.fake-alpha", "4"],
            "lora.fake_alpha = 4.0 says nothing with lora.fake_rank = 0",
        ),
    ],
)
def test_what_is_said_of_no_adapter_is_refused(tmp_path, capsys, words, named):
    from pdmd.cli.main import main

    assert main(["distill", "digits", "--out", str(tmp_path / "run"), *words]) == 2
    error = capsys.readouterr().err.strip()
    assert named in error and "\n" not in error and not (tmp_path / "run").exists()
