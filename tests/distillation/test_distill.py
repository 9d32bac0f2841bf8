import json

import pytest
import torch

from pdmd import (
    DistributionMatching,
    FromDenoiser,
    FromPrevious,
    FullGradient,
    Joint,
    MixtureTeacher,
    MlpDenoiser,
    OneFakeScorePerExitStep,
    PhasePlan,
    Student,
    SubintervalScoreMatching,
    Teacher,
    sample,
)
from pdmd.distillation.initializers import PerStep
from pdmd.training.checkpoints.checkpointer import Checkpointer, Interrupted
from pdmd.training.expert_training import ExpertTraining
from pdmd.training.fake_scores import FakeScoreTraining
from pdmd.training.monitoring.accounting import Account
from pdmd.training.monitoring.recorder import Recorder
from pdmd.training.rollouts import Rollouts
from pdmd.training.session import Session
from tests.helpers.distilling import distill

SOURCE = {
    "teacher": "mixture",
    "arguments": {"dim": 2, "classes": 2, "modes": 2},
    "network": {"name": "mlp", "arguments": {"dim": 2, "classes": 2, "width": 8}},
}


def small(**changes):
    torch.manual_seed(0)
    teacher = MixtureTeacher.random(dim=2, classes=2, modes=2)
    network = MlpDenoiser.rectified_flow(dim=2, classes=2, width=8)
    settings = dict(
        init=FromDenoiser(network), updates=6, fake_updates=2, batch_size=16, source=SOURCE
    )
    return distill(
        teacher, changes.pop("plan", PhasePlan.uniform(2, steps=2)), **{**settings, **changes}
    )


def weights(student):
    return torch.cat([p.flatten() for p in student.parameters()])


def test_the_same_seed_gives_the_same_bits():
    assert torch.equal(weights(small()), weights(small()))
    assert not torch.equal(weights(small()), weights(small(seed=1)))


class StopAt(Recorder):
    def __init__(self, checkpointer, after):
        self.checkpointer, self.after = checkpointer, after

    def on_update(self, update):
        self.after -= 1
        self.checkpointer.stop_requested = self.after == 0


@pytest.mark.parametrize("after", [1, 4, 6, 9])
def test_a_resumed_run_is_bit_identical(tmp_path, after):
    checkpointer, accounts = Checkpointer(tmp_path / "c", every=100), [Account(), Account()]
    with pytest.raises(Interrupted):
        small(checkpointer=checkpointer, recorder=StopAt(checkpointer, after))
    again = Checkpointer(tmp_path / "c", every=100)
    resumed = small(checkpointer=again, resume=True, account=accounts[0])
    assert torch.equal(weights(resumed), weights(small(account=accounts[1])))
    assert accounts[0].state() == accounts[1].state()


def test_a_flipped_byte_in_a_checkpoint_is_noticed(tmp_path):
    small(checkpointer=Checkpointer(tmp_path / "c"))
    path = max((tmp_path / "c").glob("*/*.distcp"))
    content = path.read_bytes()
    path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    with pytest.raises(ValueError, match="phase-0003.*damaged.*checkpoint phase-0002"):
        small(checkpointer=Checkpointer(tmp_path / "c"), resume=True)
    again = Checkpointer(tmp_path / "c", name="phase-0002-update-000000000")
    assert torch.equal(weights(small(checkpointer=again, resume=True)), weights(small()))
    assert again.store.latest() == "phase-0003-update-000000000"  # the damaged one is replaced


def test_resuming_with_other_settings_is_refused(tmp_path):
    checkpointer = Checkpointer(tmp_path / "c", fingerprint={"lr": 1})
    small(checkpointer=checkpointer)
    with pytest.raises(ValueError, match="lr = 1"):
        small(checkpointer=Checkpointer(tmp_path / "c", fingerprint={"lr": 2}), resume=True)


def test_gradients_reach_the_trained_expert_and_nothing_else():
    from pdmd.distillation.experts import OdeExpert
    from pdmd.training.conditions import ConditionStream
    from pdmd.training.trainer import PhaseTrainer

    torch.manual_seed(0)
    teacher, earlier, own, fake = (MlpDenoiser.rectified_flow(dim=2, width=8) for _ in range(4))
    plan = PhasePlan.uniform(2, steps=2)
    trainer = PhaseTrainer(
        experts=[OdeExpert(own, plan[1])],
        earlier=[OdeExpert(earlier, plan[0])],
        teacher=teacher,
        fakes=[[fake]],
        generator_objective=DistributionMatching(),
        fake_objective=SubintervalScoreMatching(),
        conditions=ConditionStream(None),
        updates=1,
        generator=torch.Generator().manual_seed(0),
        expert_training=ExpertTraining(ema=0.9, max_grad_norm=1.0),
        rollouts=Rollouts(batch_size=8),
        fake_training=FakeScoreTraining(updates=0, max_grad_norm=1.0),
        session=Session(),
    )
    x, _ = trainer.phase_input()
    assert not x.requires_grad
    trainer.cycle()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in own.layers.parameters())
    for network in (teacher, earlier, fake):
        assert all(p.grad is None for p in network.parameters())
    before = [p.clone() for p in own.parameters()]
    own.zero_grad()
    trainer._apply("fake", trainer.fake_objective, trainer.rollout(record=False), 0)
    assert all(p.grad is not None for p in fake.layers.parameters())
    assert all(p.grad is None for p in own.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, own.parameters(), strict=True))


def test_a_student_saves_loads_and_is_distilled_again(tmp_path):
    student = small()
    student.save(tmp_path / "student")
    loaded = Student.load(tmp_path / "student")
    condition = loaded.encode([0, 1, 1])
    draws = [
        sample(s, condition, generator=torch.Generator().manual_seed(3)) for s in (student, loaded)
    ]
    assert torch.equal(*draws)
    assert loaded.plan == student.plan
    again = distill(
        loaded,
        PhasePlan.uniform(1),
        [0, 1],
        init=FromPrevious(),
        updates=2,
        fake_updates=1,
        batch_size=8,
    )
    assert sample(again, again.encode([1])).shape == (1, 2)


@pytest.mark.parametrize(
    "settings", [dict(curriculum=Joint(shared=True)), dict(curriculum=Joint())]
)
def test_phases_train_jointly(tmp_path, settings):
    student = small(**settings)
    shared = len({id(e.denoiser) for e in student.experts}) == 1
    assert shared == settings["curriculum"].shared
    student.save(tmp_path / "student")
    assert len(list((tmp_path / "student").glob("*.safetensors"))) == (1 if shared else 2)
    loaded = Student.load(tmp_path / "student")
    assert torch.equal(weights(loaded), weights(student))
    checkpointer = Checkpointer(tmp_path / "c", every=100)
    with pytest.raises(Interrupted):
        small(checkpointer=checkpointer, recorder=StopAt(checkpointer, 5), **settings)
    resumed = small(checkpointer=Checkpointer(tmp_path / "c"), resume=True, **settings)
    assert torch.equal(weights(resumed), weights(student))


def test_every_step_may_have_its_network_and_every_stop_its_fake_score(tmp_path):
    settings = dict(
        plan=PhasePlan.uniform(1, steps=3),
        init=PerStep(FromDenoiser(MlpDenoiser.rectified_flow(dim=2, classes=2, width=8))),
        scores=OneFakeScorePerExitStep(),
    )
    student = small(**settings)
    networks = student.experts[0].denoiser.denoisers
    flat = [torch.cat([p.flatten() for p in n.parameters()]) for n in networks]
    assert not torch.equal(flat[0], flat[1]) and not torch.equal(flat[1], flat[2])
    student.save(tmp_path / "student")
    assert torch.equal(weights(Student.load(tmp_path / "student")), weights(student))


def test_fake_scores_that_nothing_would_train_are_refused():
    with pytest.raises(ValueError, match="FullGradient.*OneFakeScorePerExitStep.*untrained"):
        small(truncation=FullGradient(), scores=OneFakeScorePerExitStep())


def test_evaluations_are_counted_exactly():
    account = Account()
    plan, batch, updates, fakes = PhasePlan.uniform(3), 16, 6, 2
    small(plan=plan, account=account)
    rollouts = updates * (fakes + 1) * batch
    assert account.forward == {
        "teacher": 3 * updates * batch,
        "fake": 3 * rollouts,  # each fake update, and each of the generator's
        "generator": 3 * rollouts,
        "frozen": (0 + 1 + 2) * rollouts,
    }
    assert account.backward == {
        "teacher": 0,
        "fake": 3 * updates * fakes * batch,
        "generator": 3 * updates * batch,
        "frozen": 0,
    }


@pytest.mark.parametrize(
    "source", [3, [], {"teacher": 3}, {"teacher": "mixture", "arguments": {"cat": 1}}, {}]
)
def test_damaged_sources_are_named(tmp_path, source):
    small().save(tmp_path / "student")
    path = tmp_path / "student" / "student.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "source": source}))
    with pytest.raises(ValueError, match="damaged"):
        Student.load(tmp_path / "student")


def test_damaged_folders_are_named(tmp_path):
    folder = tmp_path / "student"
    small().save(folder)
    with pytest.raises(ValueError, match="no student.json"):
        Student.load(tmp_path / "nothing")
    path = folder / "expert_2.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"expert_2.safetensors is damaged"):
        Student.load(folder)
    path.unlink()
    with pytest.raises(ValueError, match=r"expert_2.safetensors is missing"):
        Student.load(folder)
    description = json.loads((folder / "student.json").read_text())
    for key in description:
        broken = {k: v for k, v in description.items() if k != key}
        (folder / "student.json").write_text(json.dumps(broken))
        with pytest.raises(ValueError, match="damaged"):
            Student.load(folder)
    (folder / "student.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        Student.load(folder)


class Broken(Teacher):
    def __init__(self, time_range=(0.0, 1.0)):
        from pdmd import RectifiedFlow

        super().__init__(
            schedule=RectifiedFlow(), kind="velocity", latent_shape=(2,), time_range=time_range
        )
        self.gain = torch.nn.Parameter(torch.tensor(float("nan")))

    def network(self, x_t, t, condition):
        return self.gain * x_t

    def encode(self, prompts):
        return None


def test_bad_teachers_are_refused_before_work():
    with pytest.raises(ValueError, match="not finite"):
        distill(Broken(), PhasePlan.uniform(2))
    with pytest.raises(ValueError, match=r"t = 1, outside its range \[0.1, 0.9\]"):
        distill(Broken((0.1, 0.9)), PhasePlan.uniform(2))


def test_objectives_add_and_scale():
    one, two = DistributionMatching(name="one"), DistributionMatching(name="two")
    total = one + 0.05 * two
    assert total.names == ("one", "two")
    assert [w for w, _ in (2 * total).terms] == [2.0, 0.1]
    with pytest.raises(ValueError, match="two objectives are named 'one'"):
        one + DistributionMatching(name="one")
    with pytest.raises(ValueError, match="nan"):
        float("nan") * one


def test_sums_within_sums_are_told_apart_by_what_is_in_them():
    a, b, c, d = (DistributionMatching(name=name) for name in "abcd")
    total = (a + 2 * b).only(0) + 0.5 * (c + d).only(1)
    assert total.names == ("a", "b", "c", "d")
    with pytest.raises(ValueError, match="two objectives are named 'b'"):
        (a + b).only(0) + b
