"""Registers a custom teacher with classes and guidance, and distills it.

As a plugin: ``PYTHONPATH=examples pdmd check arcs --plugins 02_custom_teacher``.
"""

import torch
from tensordict import TensorDict
from torch import nn

import pdmd


def arcs(label, generator):
    """Draws points on one of two half circles, with shape (B, 2)."""
    angle = torch.pi * torch.rand(len(label), generator=generator)
    x = torch.stack([angle.cos() + label - 0.5, angle.sin() * (1 - 2 * label) + label / 2], 1)
    return x + 0.05 * torch.randn(x.shape, generator=generator)


@pdmd.teachers.register("arcs")
class ArcsTeacher(pdmd.Teacher):
    """A small network of two classes, trained by flow matching in a few seconds."""

    def __init__(self, updates=2000):
        super().__init__(schedule=pdmd.RectifiedFlow(), kind="velocity", latent_shape=(2,))
        with torch.random.fork_rng(devices=[]):  # leaves the caller's random numbers alone
            torch.manual_seed(0)
            self.label = nn.Embedding(3, 64)  # 2 is the null prompt
            self.layers = nn.Sequential(
                nn.Linear(2 + 9 + 64, 96),
                nn.SiLU(),
                nn.Linear(96, 96),
                nn.SiLU(),
                nn.Linear(96, 96),
                nn.SiLU(),
                nn.Linear(96, 2),
            )
        self.train_on_arcs(updates)

    def network(self, x_t, t, condition):
        null = torch.full((len(x_t),), 2, device=x_t.device)
        label = null if condition is None else condition["label"]
        k = torch.arange(1, 5, device=x_t.device)
        time = torch.pi * t[:, None].to(x_t) * k
        inputs = [x_t, t[:, None].to(x_t), time.sin(), time.cos(), self.label(label)]
        return self.layers(torch.cat(inputs, 1))

    def encode(self, prompts):
        for prompt in prompts:
            if prompt not in (0, 1, None):
                raise ValueError(f"a prompt is 0, 1 or None, got {prompt!r}")
        label = torch.tensor([2 if prompt is None else prompt for prompt in prompts])
        return TensorDict({"label": label}, batch_size=[len(label)])

    @property
    def prompts(self):
        return [0, 1]

    def train_on_arcs(self, updates):
        generator = torch.Generator().manual_seed(0)
        optimizer = torch.optim.Adam(self.parameters(), lr=3e-3)
        rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(updates, 1))
        for _ in range(updates):
            label = torch.randint(2, (512,), generator=generator)
            x, noise = arcs(label, generator), torch.randn(512, 2, generator=generator)
            dropped = torch.rand(512, generator=generator) < 0.1  # guidance dropout
            condition = TensorDict({"label": label.masked_fill(dropped, 2)}, batch_size=[512])
            t = torch.rand(512, generator=generator).double()
            x_t = (1 - t)[:, None] * x + t[:, None] * noise
            error = self.network(x_t.float(), t, condition) - (noise - x)
            optimizer.zero_grad()
            error.square().mean().backward()
            optimizer.step()
            rates.step()


def distance(x, y):
    """Returns the energy distance of two samples, 0 for equal distributions."""
    means = [torch.cdist(a, b).mean() for a, b in ((x, y), (x, x), (y, y))]
    return float(2 * means[0] - means[1] - means[2])


if __name__ == "__main__":  # not as a plugin
    teacher = ArcsTeacher()
    student = pdmd.distill(
        teacher,
        pdmd.PhasePlan.uniform(2, steps=2),
        updates=150,
        experts=pdmd.ExpertTraining(optimizer=pdmd.AdamRecipe(lr=1e-3)),
        fake_scores=pdmd.FakeScoreTraining(updates=3),
    )
    labels = torch.arange(2000) % 2
    condition = teacher.encode(labels.tolist())
    real = arcs(labels, torch.Generator().manual_seed(3))
    noise = torch.Generator()
    for name, x in {
        "teacher, 50 steps": pdmd.sample_ode(
            teacher, condition, steps=50, generator=noise.manual_seed(1)
        ),
        "teacher, 4 Euler steps": pdmd.sample_ode(
            teacher, condition, steps=4, generator=noise.manual_seed(1)
        ),
        "student, 4 steps": pdmd.sample(student, condition, generator=noise.manual_seed(1)),
    }.items():
        print(f"{name:<23}{distance(x, real):.4f} from the arcs")
