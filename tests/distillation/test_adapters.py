import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pdmd import (
    AdaptedDenoiser,
    FromDenoiser,
    Guided,
    IntervalRouter,
    LowRank,
    LowRankRoles,
    MixtureTeacher,
    MlpDenoiser,
    PhasePlan,
    RoutedDenoiser,
)
from pdmd.distillation.adapters import adapt, adapted_parts
from pdmd.distributed.runtime import OneProcess
from pdmd.training.ema import Ema
from pdmd.training.monitoring.accounting import Account
from tests.helpers.adapters import (
    FOUR,
    TWO,
    TWO_DIGITS,
    Gradients,
    SeparateBases,
    digits,
    evaluated,
    run,
    same,
    shaken,
    teacher_of,
)
from tests.helpers.distilling import distill

ROLES = {
    "both": (FOUR, TWO),
    "generator": (FOUR, None),
    "fake": (None, FOUR),
}


@pytest.mark.parametrize("roles", ROLES)
@pytest.mark.parametrize("name", ["qwen_image", "wan_2.2_a14b"])
def test_roles_over_one_base_train_as_separate_copies_do(name, roles):
    teacher, init = Guided(teacher_of(name), 2.0), LowRankRoles(*ROLES[roles])
    apart = run(teacher, SeparateBases(init))
    same(run(teacher, init), apart)
    same(run(teacher, init, activation_checkpointing=True), apart)


@pytest.mark.parametrize("name", ["qwen_image", "wan_2.2_a14b"])
def test_the_teacher_is_unchanged_while_adapters_train(name):
    teacher = teacher_of(name)
    before, weights = evaluated(teacher, teacher), copy.deepcopy(teacher.state_dict())
    _, _, student = run(teacher, LowRankRoles(FOUR, TWO))
    assert torch.equal(evaluated(teacher, teacher), before)
    assert all(torch.equal(v, weights[k]) for k, v in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters())
    base = {id(p) for p in teacher.parameters()}
    adapters = adapted_parts(student)
    assert {id(p) for a in adapters for p in a.base.parameters()} <= base
    assert not base & {id(p) for p in student.parameters()}
    moved = evaluated(student.experts[1].denoiser, teacher)
    assert not torch.equal(moved, evaluated(teacher.part(0.5, 0.0), teacher))


def test_a_gradient_reaches_the_factors_of_the_called_network_alone():
    teacher = digits()
    one, other = (shaken(AdaptedDenoiser(teacher, FOUR, seed=s), s) for s in (0, 1))
    evaluated(one, teacher).square().sum().backward()
    assert all(bool(p.grad.any()) for p in one.parameters())
    assert all(p.grad is None for p in (*teacher.parameters(), *other.parameters()))


def test_the_base_and_its_adapters_are_evaluated_independently():
    teacher = digits()
    plain = evaluated(teacher, teacher)
    fresh = AdaptedDenoiser(teacher, FOUR, seed=0)
    assert torch.equal(evaluated(fresh, teacher), plain)  # B starts at zero
    changed = evaluated(shaken(fresh), teacher)
    assert not torch.equal(changed, plain)
    assert torch.equal(evaluated(teacher, teacher), plain)
    assert torch.equal(evaluated(fresh, teacher), changed)


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
    wanted = evaluated(theirs, teacher)
    assert not torch.allclose(wanted, evaluated(part, teacher), atol=1e-3)
    torch.testing.assert_close(evaluated(ours, teacher), wanted, rtol=0, atol=1e-6)


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


def test_copies_share_only_the_base():
    teacher = digits()
    adapted = shaken(AdaptedDenoiser(teacher, FOUR, seed=0))
    average = Ema(torch.nn.ModuleDict({"0": adapted}), 0.5).network["0"]
    copied = adapted.trainable_copy()
    routed = copy.deepcopy(RoutedDenoiser([adapted, copied], IntervalRouter((1.0, 0.5, 0.0))))
    for one in (average, copied, *routed.denoisers):
        assert one.base is teacher
        assert not {id(p) for p in one.parameters()} & {id(p) for p in adapted.parameters()}
    kept = evaluated(adapted, teacher)
    shaken(copied, 5)
    assert torch.equal(evaluated(adapted, teacher), kept)
    assert torch.equal(evaluated(average, teacher), kept)
    assert not torch.equal(evaluated(copied, teacher), kept)


def test_a_deep_copy_uses_a_base_copied_before():
    teacher = digits()
    adapted = shaken(AdaptedDenoiser(teacher, FOUR, seed=0))
    memo: dict = {}
    other = copy.deepcopy(teacher, memo)
    moved = copy.deepcopy(adapted, memo)
    assert moved.base is other
    assert torch.equal(evaluated(moved, teacher), evaluated(adapted, teacher))


def test_base_and_factors_keep_their_dtypes():
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


def test_an_adapters_evaluation_is_not_counted_as_the_teachers():
    counts = []
    for init in (LowRankRoles(FOUR, TWO_DIGITS), SeparateBases(LowRankRoles(FOUR, TWO_DIGITS))):
        account = Account()
        run(digits(), init, account=account)
        counts.append(account.state())
    assert counts[0] == counts[1]
    assert counts[0]["forward"]["teacher"] > 0


def test_a_phase_of_two_networks_adapts_both():
    teacher = teacher_of("wan_2.2_a14b")
    both = adapt(teacher.part(0.9, 0.5), FOUR, seed=3)
    assert [part.base for part in adapted_parts(both)] == list(teacher.routed.denoisers)
    assert torch.equal(evaluated(both, teacher, t=0.9), evaluated(teacher, teacher, t=0.9))
    a, b = (p.state_dict() for p in adapted_parts(both))
    assert not torch.equal(next(iter(a.values())), next(iter(b.values())))  # different seeds


def test_networks_that_cannot_be_adapted_raise():
    teacher = teacher_of("qwen_image")
    adapted = AdaptedDenoiser(teacher, FOUR, seed=0)
    with pytest.raises(ValueError, match="adapted already.*merged"):
        AdaptedDenoiser(adapted, FOUR, seed=0)
    teacher.backbone.enable_gradient_checkpointing()
    with pytest.raises(ValueError, match="disable_gradient_checkpointing"):
        evaluated(adapted, teacher)
    mixture = MixtureTeacher.random(dim=2, classes=2)
    with pytest.raises(ValueError, match="MixtureTeacher has no weights to adapt"):
        distill(mixture, PhasePlan.uniform(1), init=LowRankRoles(FOUR), updates=1)
    network = MlpDenoiser.rectified_flow(dim=2, classes=2, width=8)
    over = LowRankRoles(LowRank(rank=2), LowRank(rank=2), start=FromDenoiser(network))
    student = distill(mixture, PhasePlan.uniform(1), init=over, updates=1, batch_size=4)
    assert adapted_parts(student)[0].base is network


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--lora.alpha", "4"], "lora.alpha = 4.0 has no effect with lora.rank = 0, which trains"),
        (["--lora.targets", "to_q"], "lora.targets = ('to_q',) has no effect with lora.rank = 0"),
        (
            ["--lora.rank", "2", "--lora.fake-alpha", "4"],
            "lora.fake_alpha = 4.0 has no effect with lora.fake_rank = 0",
        ),
    ],
)
def test_what_is_said_of_no_adapter_is_refused(tmp_path, capsys, words, named):
    from pdmd.cli.main import main

    assert main(["distill", "digits", "--out", str(tmp_path / "run"), *words]) == 2
    error = capsys.readouterr().err.strip()
    assert named in error and "\n" not in error and not (tmp_path / "run").exists()
