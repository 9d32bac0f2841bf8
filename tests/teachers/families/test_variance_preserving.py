"""Variance-preserving families against the pipelines of diffusers, from folders and arguments."""

import functools
import json

import numpy as np
import pytest
import torch

from pdmd import (
    DiscreteVP,
    DistributionMatching,
    Guided,
    PhasePlan,
    RectifiedFlow,
    Student,
    SubintervalScoreMatching,
    sample,
)
from pdmd.cli.main import main
from pdmd.diffusion.solvers import ode_step
from pdmd.objectives import UniformTimes
from pdmd.teachers import (
    DDPMTeacher,
    DiTTeacher,
    PromptEmbeddings,
    SDXLTeacher,
    StableDiffusionTeacher,
    WithSchedule,
)
from pdmd.teachers.base import teachers
from pdmd.teachers.families.discrete_timesteps import SCALED_LINEAR, noise_levels, timestep_of
from tests.helpers.distilling import distill
from tests.helpers.tiny_families import close, noise, ode

TINY = {"channels": 8, "norm_num_groups": 4, "layers_per_block": 1}
SD = {**TINY, "heads": 2, "cross_attention_dim": 16, "height": 64, "width": 48}
XL = {
    **TINY,
    "deep_layers": 1,
    "middle_layers": 1,
    "cross_attention_dim": 24,
    "pooled_dim": 12,
    "size_dim": 4,
    "height": 64,
    "width": 48,
}
DIT = {
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "sample_size": 8,
}
FAMILIES = {
    "sd": (StableDiffusionTeacher, {**SD, "random_prompts": 2}),
    "sd_v": (StableDiffusionTeacher, {**SD, "version": 2, "random_prompts": 2}),
    "sd_zero": (
        StableDiffusionTeacher,
        {**SD, "version": 2, "rescale_betas_zero_snr": True, "random_prompts": 2},
    ),
    "sdxl": (SDXLTeacher, {**XL, "random_prompts": 2}),
    "ddpm": (DDPMTeacher, {**TINY, "height": 16, "width": 24}),
    "ddpm_sigma": (DDPMTeacher, {**TINY, "learned_variance": True, "prediction_type": "sample"}),
    "dit": (DiTTeacher, DIT),
}
STEPS = [1.0, 0.75, 0.5, 0.25, 0.0]


@functools.cache
def family(name):
    cls, arguments = FAMILIES[name]
    teacher = cls.from_config(**arguments).requires_grad_(False)
    if name == "dit":  # its last layer starts at a prediction that labels hardly move
        for parameter in teacher.parameters():
            parameter.mul_(2)
    return teacher


def network_of(teacher):
    return teacher.backbone


def scheduler(teacher, **more):
    from diffusers import DDIMScheduler

    betas = {"beta_schedule": "linear"} if isinstance(teacher, DDPMTeacher | DiTTeacher) else {}
    names = {"x0": "sample"}
    return DDIMScheduler(
        **{
            **(betas or SCALED_LINEAR),
            "prediction_type": names.get(teacher.kind, teacher.kind),
            "timestep_spacing": "trailing",
            "clip_sample": False,
            "set_alpha_to_one": True,
            "steps_offset": 0 if betas else 1,
            "rescale_betas_zero_snr": float(teacher.levels.alphas_cumprod[-1]) == 0,
            **more,
        }
    )


def vae():
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(4, 4, 4, 4),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=2,
        scaling_factor=0.3,
    ).eval()


def quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sd_pipeline(teacher, *, text=(None, None), **more):
    from diffusers import StableDiffusionPipeline

    return quiet(
        StableDiffusionPipeline(
            vae=vae(),
            tokenizer=text[0],
            text_encoder=text[1],
            unet=teacher.backbone,
            scheduler=scheduler(teacher, **more),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    )


def xl_pipeline(teacher, *, text=(None,) * 4, force_zeros=True, **more):
    from diffusers import StableDiffusionXLPipeline

    if text[3] is None:
        text = (*text[:3], Pooling(teacher))
    return quiet(
        StableDiffusionXLPipeline(
            vae=vae(),
            tokenizer=text[0],
            text_encoder=text[1],
            tokenizer_2=text[2],
            text_encoder_2=text[3],
            unet=teacher.backbone,
            scheduler=scheduler(teacher, **more),
            force_zeros_for_empty_prompt=force_zeros,
            add_watermarker=False,
        )
    )


class Pooling(torch.nn.Module):
    """Stands for a text encoder where embeddings are given; its pooled dimension is asked for."""

    def __init__(self, teacher):
        super().__init__()
        unet = teacher.backbone.config
        dim = unet.projection_class_embeddings_input_dim - 6 * unet.addition_time_embed_dim
        self.config = type("config", (), {"projection_dim": dim})
        self.dtype, self.device = torch.float32, torch.device("cpu")


def class_pipeline(teacher, **more):
    from diffusers import DiTPipeline

    return quiet(DiTPipeline(teacher.backbone, vae(), scheduler(teacher, **more)))


def ddim_pipeline(teacher, **more):
    from diffusers import DDIMPipeline

    return quiet(DDIMPipeline(teacher.backbone, scheduler(teacher, **more)))


def theirs(name, teacher, condition, null, *, scale=1.0, steps=4, **more):
    """What the family's pipeline makes of the teacher's noise."""
    rows = 2 if condition is None else len(condition)
    x = noise(teacher, rows)
    common = {"num_inference_steps": steps, "guidance_scale": scale, "output_type": "latent"}
    if name.startswith("sd"):
        text = {
            "prompt_embeds": condition["prompt"],
            "negative_prompt_embeds": null["prompt"].expand(rows, -1, -1),
            "latents": x,
            "height": teacher.options["height"],
            "width": teacher.options["width"],
        }
        if name == "sdxl":
            text["pooled_prompt_embeds"] = condition["pooled"]
            text["negative_pooled_prompt_embeds"] = null["pooled"].expand(rows, -1)
            return xl_pipeline(teacher, **more)(**text, **common).images
        return sd_pipeline(teacher, **more)(**text, **common).images
    if name == "dit":
        pipeline = class_pipeline(teacher, **more)
        seen = []
        pipeline.vae.decode = lambda x: seen.append(x) or type("out", (), {"sample": x})
        labels = condition["label"].tolist()
        with noise_is(pipeline, x):
            pipeline(labels, scale, num_inference_steps=steps, output_type="pt")
        return seen[0] * pipeline.vae.config.scaling_factor
    pipeline = ddim_pipeline(teacher, **more)
    seen = []
    step = pipeline.scheduler.step

    def kept(output, t, x, *args, **kwargs):
        if output.shape != x.shape:  # this pipeline does not know learned variances
            output = output[:, : x.shape[1]]
        out = step(output, t, x, *args, **kwargs)
        seen.append(out.prev_sample)
        return out

    pipeline.scheduler.step = kept
    with noise_is(pipeline, x):
        pipeline(batch_size=rows, num_inference_steps=steps, output_type="np")
    return seen[-1]


class noise_is:
    """Makes a pipeline that takes no latents start from given ones."""

    def __init__(self, pipeline, x):
        import importlib

        self.module = importlib.import_module(type(pipeline).__module__)
        self.x = x

    def __enter__(self):
        self.before = self.module.randn_tensor
        self.module.randn_tensor = lambda *args, **kwargs: self.x

    def __exit__(self, *error):
        self.module.randn_tensor = self.before


def conditions(teacher):
    if isinstance(teacher, DDPMTeacher):
        return None, None
    return teacher.encode(teacher.prompts[:2]), teacher.encode([None])


@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_samples_as_its_pipeline_does(name, scale):
    teacher = family(name)
    condition, null = conditions(teacher)
    if condition is None and scale != 1:
        with pytest.raises(ValueError, match="takes no conditions"):
            Guided(teacher, scale)
        return
    expected = theirs(name, teacher, condition, null, scale=scale)
    x = noise(teacher, 2)
    assert float((expected - x).abs().max()) > 0.1
    denoiser = Guided(teacher, scale)
    for t, s in zip(STEPS, STEPS[1:], strict=False):
        with torch.no_grad():
            x = ode_step(denoiser(x, t, condition), s)
    scaled = 2e-5 * max(1.0, float(expected.abs().max()))
    close(x, expected, scaled)
    if condition is not None:
        close(ode(denoiser, condition, STEPS), expected, scaled)


@pytest.mark.parametrize("name", ["sd", "sd_v", "sdxl", "dit", "ddpm"])
def test_a_last_step_to_the_first_level_is_the_pipelines_too(name):
    """Schedulers of the field end at level 0 where set_alpha_to_one is false."""
    teacher = family(name)
    condition, null = conditions(teacher)
    expected = theirs(name, teacher, condition, null, set_alpha_to_one=False)
    x = noise(teacher, 2)
    times = [*STEPS[:-1], 1e-3]
    for t, s in zip(times, times[1:], strict=False):
        with torch.no_grad():
            x = ode_step(teacher(x, t, condition), s)
    close(x, expected, 2e-5 * max(1.0, float(expected.abs().max())))


@pytest.mark.parametrize("name", FAMILIES)
def test_levels_are_the_schedulers_and_times_the_networks(name):
    teacher = family(name)
    own = scheduler(teacher).alphas_cumprod.double()
    level = torch.tensor([0, 1, 249, 998, 999])
    alpha, sigma = teacher.schedule((level.double() + 1) / 1000)
    torch.testing.assert_close(alpha**2, own[level], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(sigma**2, 1 - own[level], rtol=1e-6, atol=1e-9)
    assert torch.equal(timestep_of((level.double() + 1) / 1000, teacher.levels), level.float())
    assert teacher.time_range == (1e-3, 1.0)
    assert teacher.schedule.prior_std() == pytest.approx(1.0, abs=1e-12)
    # between levels, time and log-SNR move together
    between = teacher.schedule.t_from_log_snr(
        0.5 * sum(teacher.schedule.log_snr(v) for v in (0.5, 0.501))
    )
    assert float(timestep_of(between, teacher.levels)) == pytest.approx(499.5, abs=1e-3)


@pytest.mark.parametrize("name", FAMILIES)
def test_an_oracle_gets_its_data_back(name):
    """A network that sees its input and its time, and knows the data besides."""
    cls, arguments = FAMILIES[name]
    teacher = cls.from_config(**arguments)
    x0 = noise(teacher, 2, seed=1)
    own = scheduler(teacher).alphas_cumprod.double().numpy()
    known = own > 0
    log_snr = np.log(own[known] / (1 - own[known]))

    def forward(sample, timestep, *args, return_dict=True, **kwargs):
        level = torch.as_tensor(timestep).expand(len(sample)).double().numpy()
        share = 1 / (1 + np.exp(-np.interp(level, np.arange(len(log_snr)), log_snr)))
        share = np.where(known[level.astype(int)], share, 0.0)
        a, s = (
            torch.tensor(np.sqrt(v), dtype=torch.float32).reshape(-1, 1, 1, 1)
            for v in (share, 1 - share)
        )
        epsilon = (sample - a * x0) / s
        kinds = {"epsilon": epsilon, "v_prediction": a * epsilon - s * x0}
        value = kinds.get(teacher.kind, x0.expand_as(sample))
        if name in ("dit", "ddpm_sigma"):
            value = torch.cat([value, torch.full_like(value, torch.nan)], 1)
        return type("out", (), {"sample": value}) if return_dict else (value,)

    network_of(teacher).forward = forward
    condition, null = conditions(teacher)
    tolerance = 1e-4  # epsilon is divided by the little signal of the last level
    x = noise(teacher, 2)
    for t, s in zip(STEPS, STEPS[1:], strict=False):
        prediction = teacher(x, t, condition)
        close(prediction.to("x0"), x0, tolerance)
        x = ode_step(prediction, s)
    close(x, x0, tolerance)
    if name != "sd_zero":
        flow = WithSchedule.reach(teacher, RectifiedFlow())
        t = torch.tensor([0.9, 0.2])
        alpha, sigma = (v.reshape(-1, 1, 1, 1).float() for v in flow.schedule(t))
        y = alpha * x0 + sigma * noise(teacher, 2)
        nearest = teacher.schedule.t_from_log_snr(flow.schedule.log_snr(t.double()))
        assert not torch.equal(nearest * 1000, (nearest * 1000).round())
        close(flow(y, t, condition).to("x0"), x0, tolerance)
        close(y - t.reshape(-1, 1, 1, 1) * flow(y, t, condition).value, x0, tolerance)


def clip(dim, projection=None, hidden=None):
    """A text encoder of CLIP and its tokenizer, of words made here."""
    from transformers import (
        CLIPTextConfig,
        CLIPTextModel,
        CLIPTextModelWithProjection,
        CLIPTokenizer,
    )

    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(
        vocab={w: i for i, w in enumerate(words)}, merges=[], model_max_length=16
    )
    torch.manual_seed(dim)
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=dim,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        projection_dim=projection or dim,
        bos_token_id=len(words) - 2,
        eos_token_id=len(words) - 1,
        pad_token_id=len(words) - 1,
    )
    model = CLIPTextModel if projection is None else CLIPTextModelWithProjection
    return tokenizer, model(config).eval()


def decoded(x):
    with torch.no_grad():
        return (vae().decode(x / 0.3).sample / 2 + 0.5).clamp(0, 1)


@pytest.mark.parametrize("name", ["sd", "sd_v", "sd_zero"])
def test_stable_diffusion_loads_from_its_pipelines_folder(tmp_path, name):
    teacher = family(name)
    pipeline = sd_pipeline(teacher, text=clip(16))
    pipeline.save_pretrained(tmp_path)
    (tmp_path / "prompts.txt").write_text("a cat\nan even longer prompt about dogs\n")
    loaded = teachers.get("stable_diffusion")(
        folder=str(tmp_path),
        prompts=str(tmp_path / "prompts.txt"),
        height=64,
        width=48,
        dtype="float32",
    )
    assert loaded.kind == teacher.kind
    torch.testing.assert_close(
        loaded.levels.alphas_cumprod, teacher.levels.alphas_cumprod, rtol=0, atol=0
    )
    condition = loaded.encode([*loaded.prompts, None])
    expected, null = pipeline.encode_prompt(list(loaded.prompts), "cpu", 1, True)
    close(condition["prompt"], torch.cat([expected, null[:1]]))
    close(loaded.encode(["a cat"])["prompt"], condition["prompt"][:1])
    images = pipeline(
        prompt=list(loaded.prompts),
        latents=noise(teacher, 2),
        height=64,
        width=48,
        num_inference_steps=4,
        guidance_scale=5.0,
        output_type="pt",
    ).images
    x = ode(Guided(loaded, 5.0), condition[:2], STEPS)
    close(loaded.decode(x), images, 1e-4)
    close(loaded.decode(x), decoded(x))
    assert torch.equal(loaded(x, 0.5, condition[:2]).value.isfinite().all(), torch.tensor(True))
    outline = StableDiffusionTeacher.from_pretrained(tmp_path, meta=True)
    assert {p.device.type for p in outline.parameters()} == {"meta"}
    side = {1: 512, 2: 768}[1 if name == "sd" else 2]
    assert (outline.options["height"], outline.options["width"]) == (
        side,
        side,
    )  # the network's own


@pytest.mark.parametrize("force_zeros", [True, False])
def test_sdxl_loads_from_its_pipelines_folder(tmp_path, force_zeros):
    teacher = family("sdxl")
    first, second = clip(10), clip(14, projection=12)
    pipeline = xl_pipeline(teacher, text=(*first, *second), force_zeros=force_zeros)
    pipeline.save_pretrained(tmp_path)
    prompts = ["a cat", "an even longer prompt"]
    loaded = SDXLTeacher.from_pretrained(
        tmp_path, height=64, width=48, prompts=prompts, dtype="float32"
    )
    condition = loaded.encode([*prompts, None, ""])
    tokens, null, pooled, null_pooled = pipeline.encode_prompt(prompts)
    close(condition["prompt"][:3], torch.cat([tokens, null[:1]]))
    close(condition["pooled"][:3], torch.cat([pooled, null_pooled[:1]]))
    assert bool((condition["prompt"][2] == 0).all()) == force_zeros
    assert (condition["prompt"][3] != 0).any()  # an empty text that was given
    for i, prompt in enumerate([*prompts, None, ""]):
        alone = loaded.encode([prompt])
        close(alone["prompt"], condition["prompt"][i : i + 1])
        close(alone["pooled"], condition["pooled"][i : i + 1])
    images = pipeline(
        prompt=prompts,
        latents=noise(teacher, 2),
        height=64,
        width=48,
        num_inference_steps=4,
        guidance_scale=5.0,
        output_type="pt",
    ).images
    x = ode(Guided(loaded, 5.0), condition[:2], STEPS)
    close(loaded.decode(x), images, 1e-4)


def test_sdxl_heeds_its_size_and_pooled_text():
    teacher = family("sdxl")
    condition = teacher.encode(teacher.prompts)
    x = noise(teacher, 2)
    larger = SDXLTeacher(
        teacher.backbone, schedule=teacher.levels, kind="epsilon", prompts=teacher.text
    )
    other = condition.clone()
    other["pooled"] = other["pooled"].flip(0)
    with torch.no_grad():
        value = teacher(x, 0.5, condition).value
        assert (teacher(x, 0.5, other).value - value).abs().max() > 1e-3
        assert (larger(x, 0.5, condition).value - value).abs().max() > 1e-3
    assert larger.options["height"] == 1024


def test_a_refiner_is_refused(tmp_path):
    content = {
        "_class_name": "StableDiffusionXLImg2ImgPipeline",
        "requires_aesthetics_score": True,
    }
    (tmp_path / "model_index.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="is a refiner"):
        SDXLTeacher.from_pretrained(tmp_path)


@pytest.mark.parametrize("root", [False, True])
def test_ddpm_loads_from_its_pipelines_folder(tmp_path, root):
    teacher = family("ddpm")
    ddim_pipeline(teacher).save_pretrained(tmp_path)
    if root:  # as the first pipelines of diffusers are
        for folder in ("unet", "scheduler"):
            for path in (tmp_path / folder).iterdir():
                path.rename(tmp_path / path.name)
            (tmp_path / folder).rmdir()
    loaded = teachers.get("ddpm")(folder=str(tmp_path), height=16, width=24)
    x = noise(teacher, 2)
    with torch.no_grad():
        close(loaded(x, 0.3).value, teacher(x, 0.3).value)  # weights lie otherwise in memory
    assert loaded.kind == "epsilon" and loaded.encode([None, None]) is None
    close(loaded.decode(x), (x / 2 + 0.5).clamp(0, 1), 0)
    with pytest.raises(ValueError, match="there are no classes"):
        loaded.encode(["a cat"])


def test_dit_loads_from_its_pipelines_folder(tmp_path):
    teacher = family("dit")
    class_pipeline(teacher).save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    index["id2label"] = {"3": "a cat, tabby", "7": "a dog"}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    config = tmp_path / "transformer" / "config.json"  # the released one names this class
    content = {**json.loads(config.read_text()), "_class_name": "Transformer2DModel"}
    config.write_text(json.dumps(content))
    loaded = teachers.get("dit")(folder=str(tmp_path), dtype="float32")
    condition = loaded.encode(["tabby", "a dog", 999, "5", None])
    assert condition["label"].tolist() == [3, 7, 999, 5, 1000]
    x = noise(teacher, 5)
    with torch.no_grad():
        close(loaded(x, 0.3, condition).value, teacher(x, 0.3, condition).value, 0)
        close(loaded(x, 0.3).value, teacher(x, 0.3, teacher.encode([None] * 5)).value, 0)
    close(loaded.decode(x), decoded(x))
    with pytest.raises(ValueError, match="prompt 'a horse' is not a class from 0 to 999"):
        loaded.encode(["a horse"])


@pytest.mark.parametrize("name", FAMILIES)
def test_copies_are_the_teacher_and_train(name):
    teacher = family(name)
    condition, _ = conditions(teacher)
    x = noise(teacher, 2)
    copy = teacher.trainable_part(0.8, 0.5)
    with torch.no_grad():
        for _ in range(8):  # labels are not dropped
            close(copy(x, 0.6, condition).value, teacher(x, 0.6, condition).value)
    copy(x, 0.6, condition).value.square().sum().backward()
    grads = [p.grad is not None and bool(p.grad.isfinite().all()) for p in copy.parameters()]
    assert sum(grads) > 0.8 * len(grads)
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize("name", ["sd", "sd_zero", "ddpm", "dit"])
def test_a_plan_from_noise_distills(name):
    teacher = family(name)
    prompts = None if name == "ddpm" else list(teacher.prompts)[:2]
    student = distill(
        teacher, PhasePlan.uniform(2), prompts, updates=1, fake_updates=1, batch_size=2
    )
    condition = None if prompts is None else student.encode(prompts)
    generator = torch.Generator().manual_seed(0)
    assert sample(student, condition, batch=2, generator=generator).isfinite().all()
    assert isinstance(student.schedule, DiscreteVP)


def test_a_rectified_flow_student_of_stable_diffusion_distills_to_its_last_level():
    teacher = family("sd")
    with pytest.raises(ValueError, match=r"t = 1, outside its range \[0.02.*reach"):
        distill(WithSchedule(teacher, RectifiedFlow()), PhasePlan.uniform(2))
    times = UniformTimes(0.05)  # its first level is at 0.03 there
    student = distill(
        WithSchedule.reach(Guided(teacher, 3.0), RectifiedFlow()),
        PhasePlan.uniform(2),
        generator_objective=DistributionMatching(times=times),
        fake_objective=SubintervalScoreMatching(times=times),
        updates=1,
        fake_updates=1,
        batch_size=2,
    )
    assert student.kind == "velocity"
    assert sample(student, student.encode(teacher.prompts)).isfinite().all()


@pytest.mark.slow
def test_the_command_line_distills_stable_diffusion_on_rectified_flow(tmp_path, capsys):
    arguments = {**SD, "height": 64, "width": 64, "random_prompts": 2}
    words = [
        *("--teacher.name", "stable_diffusion", "--teacher.guidance", "3"),
        *("--teacher.arguments", *(str(w) for pair in arguments.items() for w in pair)),
        *("--teacher.schedule", "rectified_flow", "--plan.phases", "2", "--no-progress"),
        *("--train.updates", "1", "--train.fake-updates", "1", "--train.batch-size", "2"),
        *("--evaluate.samples", "100", "--evaluate.teacher-steps", "2"),
        *("--out", str(tmp_path / "run")),
    ]
    assert main(["distill", "digits", *words]) == 2
    assert "--teacher.schedule-end teacher" in capsys.readouterr().err
    words += ["--teacher.schedule-end", "teacher"]
    assert main(["distill", "digits", *words]) == 2
    assert "t = 0.02, outside its range [0.03" in capsys.readouterr().err
    assert main(["distill", "digits", *words, "--objective.margin", "0.04"]) == 0
    student = Student.load(tmp_path / "run" / "student")
    alpha, sigma = student.schedule(1.0)
    assert float(alpha + sigma) == pytest.approx(1.0) and student.kind == "velocity"
    assert float(sigma) == pytest.approx(0.936, abs=1e-3)
    out = str(tmp_path / "x.safetensors")
    assert main(["sample", str(tmp_path / "run"), "--n", "2", "--out", out]) == 0


def test_full_size_builds_without_memory():
    counts = {
        name: sum(p.numel() for p in teachers.get(name)(meta=True, **arguments).parameters())
        for name, arguments in (
            ("stable_diffusion", {}),
            ("sdxl", {}),
            ("ddpm", {}),
            ("dit", {}),
        )
    }
    assert counts == {
        "stable_diffusion": 859_520_964,
        "sdxl": 2_567_463_684,
        "ddpm": 35_746_307,
        "dit": 749_826_464,  # every block has its own copy of the times' and labels' embedding
    }
    second = teachers.get("stable_diffusion")(version=2, meta=True)
    assert sum(p.numel() for p in second.parameters()) == 865_910_724
    assert second.latent_shape == (4, 96, 96) and second.kind == "v_prediction"


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("stable_diffusion", {"version": 3}, "version is 1 or 2, got 3"),
        ("stable_diffusion", {"height": 60}, "height is a multiple of 8, got 60"),
        ("stable_diffusion", {"channels": 6}, "channels are a multiple of norm_num_groups"),
        ("stable_diffusion", {"prediction_type": "flow"}, "prediction_type is one of epsilon"),
        ("sdxl", {"width": 0}, "width is a multiple of 8, got 0"),
        ("sdxl", {"channels": 6}, "channels are a multiple of norm_num_groups"),
        ("ddpm", {"height": 12}, "height is a multiple of 8, got 12"),
        ("ddpm", {"channels": 6}, "channels are a multiple of norm_num_groups"),
        ("dit", {"sample_size": 7}, "sample_size is a multiple of patch_size, got 7 and 2"),
        ("dit", {"attention_head_dim": 5}, "multiple of 4, got 10"),
    ],
)
def test_bad_arguments_are_named(name, arguments, message):
    tiny = {"stable_diffusion": SD, "sdxl": XL, "ddpm": TINY, "dit": DIT}[name]
    with pytest.raises(ValueError, match=message) as raised:
        teachers.get(name)(**{**tiny, **arguments})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["stable_diffusion", "sdxl", "ddpm", "dit"])
def test_a_missing_folder_is_named(tmp_path, name):
    with pytest.raises(ValueError, match="cannot load .*nowhere.* save_pretrained wrote"):
        teachers.get(name)(folder=str(tmp_path / "nowhere"))


def test_other_familys_folders_and_networks_are_refused(tmp_path):
    from diffusers import FlowMatchEulerDiscreteScheduler, UNet2DConditionModel, UNet2DModel

    FlowMatchEulerDiscreteScheduler().save_pretrained(tmp_path / "scheduler")
    with pytest.raises(ValueError, match=r"\(FlowMatchEulerDiscreteScheduler\) states no betas"):
        StableDiffusionTeacher.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="betas that diffusers does not know"):
        noise_levels({"beta_schedule": "own"})
    schedule, kind = noise_levels(SCALED_LINEAR)
    given = {"schedule": schedule, "kind": kind}
    with torch.device("meta"):
        inpainting = UNet2DConditionModel(in_channels=9)
        guided = UNet2DConditionModel(time_cond_proj_dim=256)
        labelled = UNet2DConditionModel(num_class_embeds=4)
        unsized = UNet2DConditionModel()
        fourier = UNet2DModel(time_embedding_type="fourier")
        classes = UNet2DModel(num_class_embeds=10)
        odd = UNet2DModel(out_channels=4)
    for network, message in (
        (inpainting, "needs an image besides noise"),
        (guided, "time_cond_proj_dim"),
        (labelled, "num_class_embeds are not supported"),
        (unsized, "states no sample_size"),
        (family("sdxl").backbone, "load it with the teacher of its family"),
    ):
        with pytest.raises(ValueError, match=message):
            StableDiffusionTeacher(network, **given)
    with pytest.raises(ValueError, match="load it with the teacher of its family"):
        SDXLTeacher(family("sd").backbone, **given)
    for network, message in (
        (fourier, "time_embedding_type 'positional'"),
        (classes, "only unconditional"),
        (odd, "takes 3 channels and makes 4"),
    ):
        with pytest.raises(ValueError, match=message):
            DDPMTeacher(network, **given)


def test_embeddings_take_the_text_encoders_place(tmp_path):
    teacher = family("sdxl")
    xl_pipeline(teacher, text=(*clip(10), *clip(14, projection=12))).save_pretrained(tmp_path)
    loaded = SDXLTeacher.from_pretrained(
        tmp_path, height=64, width=48, embeddings=teacher.text, dtype="float32"
    )
    assert isinstance(loaded.text, PromptEmbeddings)
    condition, x = loaded.encode(loaded.prompts), noise(teacher, 2)
    with torch.no_grad():
        close(loaded(x, 0.5, condition).value, teacher(x, 0.5, condition).value)
