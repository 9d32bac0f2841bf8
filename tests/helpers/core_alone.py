"""A process in which the packages of the extras cannot be imported; prints what works as JSON.

Run as ``python core_alone.py FOLDER``; the folder receives what is written.
"""

import contextlib
import io
import json
import sys

EXTRAS = {
    "torchtitan",
    *("diffusers", "transformers", "tokenizers", "peft", "accelerate", "ftfy", "huggingface_hub"),
    *("matplotlib", "jinja2", "sklearn", "tensorboard", "PIL", "scipy", "pandas"),
    *("s3fs", "aiobotocore", "botocore"),
    *("imageio", "imageio_ffmpeg", "datasets", "pyarrow", "torchao", "modelopt"),
}
SOURCE = {
    "teacher": "mixture",
    "arguments": {"dim": 2, "classes": 2, "modes": 2},
    "guidance": 1.0,
    "network": {"name": "mlp", "arguments": {"dim": 2, "classes": 2, "width": 8}},
}


class Core:
    """A finder of modules that does not find those of the extras."""

    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in EXTRAS:
            return None
        return self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)


if __name__ == "__main__":
    sys.meta_path[:] = [Core(finder) for finder in sys.meta_path]

import torch  # noqa: E402

import pdmd  # noqa: E402


def distilled(folder):
    teacher = pdmd.MixtureTeacher.random(dim=2, classes=2, modes=2)
    network = pdmd.MlpDenoiser.rectified_flow(dim=2, classes=2, width=8)
    student = pdmd.distill(
        teacher,
        pdmd.PhasePlan.uniform(2),
        updates=2,
        experts=pdmd.ExpertTraining(initializer=pdmd.FromDenoiser(network)),
        fake_scores=pdmd.FakeScoreTraining(updates=1),
        source=SOURCE,
    )
    condition = student.encode([0, 1])
    x = pdmd.sample(student, condition, generator=torch.Generator().manual_seed(0))
    student.save(folder / "student")
    again = pdmd.Student.load(folder / "student", teacher=teacher)
    same = pdmd.sample(again, condition, generator=torch.Generator().manual_seed(0))
    return f"{list(x.shape)} {bool(torch.equal(x, same))}"


def digits_teacher(folder):
    teacher = pdmd.teachers.get("digits")()
    generator = torch.Generator().manual_seed(0)
    x = pdmd.sample_ode(teacher, teacher.encode([0, 1]), steps=4, generator=generator)
    return list(teacher.decode(x).shape)


def command(*words):
    def call(folder):
        from pdmd.cli.main import main

        out, errors = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            code = main([word.replace("FOLDER", str(folder)) for word in words])
        return f"{code} {errors.getvalue() or out.getvalue()}".strip()

    return call


def torchtitan(folder):
    import pdmd.distributed.titan  # noqa: F401


def runtime(folder):
    from pdmd.cli.parallel_config import ParallelConfig

    ParallelConfig(torchtitan=True).build(0)


def digits(folder):
    from pdmd.teachers.packaged.digits import load_digit_images

    load_digit_images()


def pictures(folder, suffix, video=False):
    from pdmd.evaluation.pictures import sample_writer

    sample_writer(str(folder / f"x{suffix}"), video=video)


def scalars(folder):
    from pdmd.training.monitoring.event_files import EventFile

    EventFile(folder)


def features(folder):
    from pdmd.evaluation.features import TransformersFeatures

    TransformersFeatures.from_pretrained("facebook/dinov2-small")


def store(folder):
    from pdmd.training.checkpoints.store import Store

    Store("s3://bucket/run")


def table(folder):
    from pdmd.teachers.conditioning.prompt_files import read_prompts

    (folder / "prompts.parquet").touch()
    list(read_prompts(str(folder / "prompts.parquet")))


FEATURES = {
    "distill": distilled,
    "digits": digits_teacher,
    "pdmd --help": command("--help"),
    "pdmd distill --help": command("distill", "--help"),
    "pdmd teachers": command("teachers"),
    "pdmd objectives": command("objectives"),
    "pdmd sample": command(
        *("sample", "FOLDER/student", "--n", "3", "--out", "FOLDER/x.safetensors"),
        *("--device", "cpu", "--no-progress"),
    ),
    "pdmd distill": command("distill", "digits", "--out", "FOLDER/run"),
    "pdmd bench": command("bench", "toy1d", "--out", "FOLDER/bench.json"),
    "torchtitan": torchtitan,
    "parallel.torchtitan": runtime,
    "teachers.get": lambda folder: pdmd.teachers.get("qwen_image")(),
    "from_config": lambda folder: pdmd.teachers.WanTeacher.from_config(num_layers=1),
    "pdmd pretrain": command("pretrain", "digits", "--out", "FOLDER/digits"),
    "load_digit_images": digits,
    "png": lambda folder: pictures(folder, ".png"),
    "mp4": lambda folder: pictures(folder, ".mp4", video=True),
    "EventFile": scalars,
    "TransformersFeatures": features,
    "s3": store,
    "parquet": table,
    "8 bits": lambda folder: pdmd.AdamRecipe(bits=8),
}


if __name__ == "__main__":
    from pathlib import Path

    found = {}
    for name, feature in FEATURES.items():
        try:
            found[name] = feature(Path(sys.argv[1]))
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    found["imported"] = sorted(EXTRAS & {module.partition(".")[0] for module in sys.modules})
    print(json.dumps(found))
