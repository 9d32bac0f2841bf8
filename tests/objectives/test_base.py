import pytest
import torch

from pdmd import DistributionMatching, PhasePlan
from pdmd.objectives import Objective, OnlyPhases, PhaseContext
from pdmd.objectives.base import Models, Rollout, objectives

PLAN = PhasePlan.uniform(3)
MODELS = Models(real=None, fake=None, expert=None)


class Constant(Objective):
    """A loss of a given value that records the phases it is called in."""

    def __init__(self, value, name, bounds=None):
        self.value, self.name, self.bounds = value, name, bounds
        self._started = []

    def losses(self, models, rollout, generator):
        return {self.name: torch.tensor(self.value)}

    def time_bounds(self, phase):
        return self.bounds

    def on_phase_start(self, context, generator):
        self._started.append(context.phase.number)

    def networks(self, phase):
        return {self.name: torch.nn.Identity()}

    def diagnostics(self):
        return {f"{self.name}_measure": torch.tensor(self.value)}


def losses(objective, phase):
    rollout = Rollout(x_s=torch.zeros(1, 1), condition=None, phase=phase)
    values = objective.losses(MODELS, rollout, torch.Generator())
    return {name: float(value) for name, value in values.items()}


def start(objective, phase):
    context = PhaseContext(models=MODELS, phase=phase, draw_conditions=lambda n, g: None)
    objective.on_phase_start(context, torch.Generator())


def test_a_custom_objective_implements_losses_alone():
    class PosteriorDistance(Objective):
        name = "distance"

        def losses(self, models, rollout, generator):
            return {self.name: rollout.x_s.square().mean()}

    objective = PosteriorDistance()
    assert losses(objective, PLAN[0]) == {"distance": 0.0}
    start(objective, PLAN[0])
    assert objective.time_bounds(PLAN[0]) is None
    assert objective.networks(PLAN[0]) == objective.diagnostics() == {}
    assert objective.covers(PLAN) == {1, 2, 3}
    assert objective.names == ("distance",)


def test_sums_are_linear_and_cover_all_terms():
    a, b = Constant(2.0, "a", (0.2, 0.5)), Constant(3.0, "b", (0.4, 0.9))
    total = 2 * (a + 0.5 * b) + Constant(1.0, "c")
    assert losses(total, PLAN[0]) == {"a": 4.0, "b": 3.0, "c": 1.0}
    assert total.time_bounds(PLAN[0]) == (0.2, 0.9)
    assert set(total.networks(PLAN[0])) == {"a", "b", "c"}
    assert set(total.diagnostics()) == {"a_measure", "b_measure", "c_measure"}
    start(total, PLAN[1])
    assert a._started == b._started == [2]
    assert repr(2 * a + b) == f"2 * {a!r} + {b!r}"


def test_terms_of_nested_sums_have_distinct_names():
    a, b, c, d = (Constant(1.0, name) for name in "abcd")
    total = (a + 2 * b).only(1) + 0.5 * (c + d).only(2)
    assert total.names == ("a", "b", "c", "d")
    with pytest.raises(ValueError, match="two objectives are named 'b'"):
        (a + b).only(1) + b


def test_names_may_repeat_in_different_phases():
    a, b = Constant(1.0, "a"), Constant(2.0, "a")
    total = a.only(1, 3) + 0.5 * (b + Constant(4.0, "b")).only(2)
    assert [losses(total, phase) for phase in PLAN] == [{"a": 1.0}, {"a": 1.0, "b": 2.0}, {"a": 1}]
    assert total.names == ("a", "b") and total.covers(PLAN) == {1, 2, 3}
    losses(total, PLAN[1])  # of the last losses alone
    assert {k: float(v) for k, v in total.diagnostics().items()} == {
        "a_measure": 2,
        "b_measure": 4,
    }
    for clash in (b, b.only(3), total):
        with pytest.raises(ValueError, match="'a'.*limit them to different phases with only()"):
            a.only(1, 3) + clash


def test_sums_differences_and_quotients():
    a, b, c = (Constant(float(i), name) for i, name in enumerate("abc", 1))
    assert losses(sum([a, b, c]), PLAN[0]) == {"a": 1.0, "b": 2.0, "c": 3.0}
    assert losses((a - 2 * b + c) / 2, PLAN[0]) == {"a": 0.5, "b": -2.0, "c": 1.5}
    assert losses(-(a - b), PLAN[0]) == {"a": -1.0, "b": 2.0}
    assert sum([a]) is a
    with pytest.raises(ValueError, match="'a' is divided by 0; use another number"):
        a / 0
    for wrong in (lambda: a / b, lambda: a - 1, lambda: 1 + a):
        with pytest.raises(TypeError):
            wrong()


@pytest.mark.parametrize(
    ("returned", "named"),
    [
        (torch.zeros(()), "returned tensor"),
        (None, "returned None; return losses by name"),
        ({"a": 1.0}, "returned 'a': 1.0; return a tensor by name"),
        ({"a": torch.zeros(3)}, r"a loss 'a' of shape \(3,\) and type torch.float32"),
        ({"a": torch.zeros((), dtype=torch.long)}, "type torch.int64; return one real number"),
    ],
)
def test_what_a_term_returns_is_checked(returned, named):
    class Wrong(Objective):
        name = "wrong"

        def losses(self, models, rollout, generator):
            return returned

    with pytest.raises((TypeError, ValueError), match=rf"^'wrong' \(Wrong\) in phase 2.*{named}"):
        losses(Constant(1.0, "b") + 0.5 * Wrong(), PLAN[1])


def test_terms_with_one_name_or_a_weight_that_is_not_finite_raise():
    with pytest.raises(ValueError, match="two objectives are named 'a'.*name='other'"):
        Constant(1.0, "a") + Constant(2.0, "a")
    with pytest.raises(ValueError, match="the weight of 'a' is inf"):
        float("inf") * Constant(1.0, "a")
    with pytest.raises(TypeError, match="expected an instance of Objective to add, got 1"):
        Constant(1.0, "a") + 1


def test_phases_are_counted_from_one():
    objective = Constant(1.0, "a", (0.1, 0.9)).only(1, 3)
    assert [losses(objective, phase) for phase in PLAN] == [{"a": 1.0}, {}, {"a": 1.0}]
    assert [objective.time_bounds(phase) for phase in PLAN] == [(0.1, 0.9), None, (0.1, 0.9)]
    assert [set(objective.networks(phase)) for phase in PLAN] == [{"a"}, set(), {"a"}]
    assert objective.covers(PLAN) == {1, 3}
    for phase in PLAN:
        start(objective, phase)
    assert objective.objective._started == [1, 3]
    assert repr(objective) == f"({objective.objective!r}).only(1, 3)"
    assert repr(Constant(1.0, "a").only(2)).endswith(".only(2)")


def test_limits_intersect():
    assert Constant(1.0, "a").only(1, 2).only(2, 3).covers(PLAN) == {2}


@pytest.mark.parametrize("phases", [(0,), (1, 0), (-1,)])
def test_phases_below_one_raise(phases):
    with pytest.raises(ValueError, match=r"phases are counted from 1, got \("):
        Constant(1.0, "a").only(*phases)


def test_phases_that_do_not_exist_raise():
    with pytest.raises(ValueError, match="at least one phase to limit 'a' to"):
        OnlyPhases(Constant(1.0, "a"), ())
    with pytest.raises(ValueError, match=r"'a' is limited to phases \(4,\), but the plan has 3"):
        Constant(1.0, "a").only(4).covers(PLAN)


def test_objectives_are_registered_by_name():
    assert set(objectives) >= {
        "distribution_matching",
        "score_matching",
        "f_divergence",
        "fisher_divergence",
        "trajectory_regression",
        "velocity_regression",
        "adversarial",
        "discriminator",
        "repulsion",
        "noise_sensitivity",
    }
    assert all(issubclass(objectives[name], Objective) for name in objectives)


@pytest.mark.parametrize("weight", ["2", None, True, [1], torch.ones(2)])
def test_objectives_are_scaled_by_numbers(weight):
    with pytest.raises(TypeError, match="a weight is a number"):
        weight * DistributionMatching()


@pytest.mark.parametrize("other", ["x", 1, None, DistributionMatching])
def test_only_objectives_are_added(other):
    with pytest.raises(TypeError, match="an instance of Objective"):
        DistributionMatching() + other


def test_an_objective_without_a_name_has_that_of_its_class():
    class Distance(Objective):
        def losses(self, models, rollout, generator):
            return {"distance": rollout.x_s.mean()}

    assert Distance().name == "Distance" and Distance().only(1).names == ("Distance",)
    with pytest.raises(ValueError, match="two objectives are named 'Distance'"):
        Distance() + Distance()
