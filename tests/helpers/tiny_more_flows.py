"""More tiny families, and how the pipelines of diffusers around them are run on a condition."""

import functools
import inspect

import torch

from pdmd.teachers.base import teachers
from pdmd.teachers.families.cosmos_predict25 import ProjectedOnce
from pdmd.teachers.families.tiny.pipelines import TINY
from pdmd.teachers.families.tiny.sounds import ltx2_parts
from pdmd.teachers.families.tokens import pack, unpack
from tests.helpers.tiny_families import noise
from tests.helpers.tiny_pipelines import bare, shared

TEXT = {"prompt": "prompt_embeds"}
MASKED = {**TEXT, "mask": "prompt_attention_mask"}
TEXT_PARTS = ("tokenizer", "text_encoder")
SHORT = {"random_prompts": 3, "text_length": 7}


def inputs(teacher, condition, null, steps, output, guidance, names):
    """Returns arguments of a call: embeddings, guidance and a size."""
    rows = len(condition["prompt"])
    given = {
        f"{sign}{name}": shared(one, rows, key)
        for sign, one in (("", condition), ("negative_", null))
        for key, name in names.items()
    }
    size = {key: teacher.options[key] for key in ("height", "width") if key in teacher.options}
    return {**given, **size, "num_inference_steps": steps, "output_type": output, **guidance}


def run_sana(pipeline, teacher, condition, null, *, scale, steps, output="latent"):
    guidance = {"guidance_scale": scale, "use_resolution_binning": False, "negative_prompt": None}
    return pipeline(
        latents=noise(teacher, len(condition)),
        **inputs(teacher, condition, null, steps, output, guidance, MASKED),
    ).images


def encode_sana(pipeline, prompts):
    call = inspect.signature(type(pipeline).__call__).parameters
    instruction = call["complex_human_instruction"].default
    assert instruction
    prompt, mask, null, null_mask = pipeline.encode_prompt(
        list(prompts), complex_human_instruction=instruction
    )
    return {
        "prompt": torch.cat([prompt, null[:1]]),
        "mask": torch.cat([mask, null_mask[:1]]).bool(),
    }


def run_chroma(pipeline, teacher, condition, null, *, scale, steps, output="latent"):
    out = pipeline(
        latents=pack(noise(teacher, len(condition))),
        **inputs(teacher, condition, null, steps, output, {"guidance_scale": scale}, MASKED),
    ).images
    return unpack(out, *teacher.latent_shape[1:]) if output == "latent" else out


def encode_chroma(pipeline, prompts):
    prompt, _, mask, null, _, null_mask = pipeline.encode_prompt(list(prompts))
    return {
        "prompt": torch.cat([prompt, null[:1]]),
        "mask": torch.cat([mask, null_mask[:1]]).bool(),
    }


def run_cogvideox(pipeline, teacher, condition, null, *, scale, steps, output="latent"):
    guidance = {"guidance_scale": scale}
    given = inputs(teacher, condition, null, steps, output, guidance, TEXT)
    frames = {"num_frames": teacher.options["frames"]}
    latents = noise(teacher, len(condition)).transpose(1, 2)
    return pipeline(latents=latents, **given, **frames).frames.transpose(1, 2)


def encode_cogvideox(pipeline, prompts):
    prompt, null = pipeline.encode_prompt(list(prompts))
    return {"prompt": torch.cat([prompt, null[:1]])}


def trailing(pipeline):
    return [*((pipeline.scheduler.timesteps + 1) / 1000).tolist(), 0.0]


def run_flux2(pipeline, teacher, condition, null, *, scale, steps, output="latent"):
    embedded = teacher.options["guidance_embedded"] is not None
    guidance = {"guidance_scale": teacher.options["guidance_embedded"] if embedded else scale}
    given = inputs(teacher, condition, null, steps, output, guidance, TEXT)
    if embedded:
        del given["negative_prompt_embeds"]
    x = noise(teacher, len(condition))
    kept = []
    call = {"callback_on_step_end": lambda pipe, i, t, found: kept.append(found["latents"]) or {}}
    out = pipeline(latents=x, **given, **call).images
    if output != "latent":
        return out
    return kept[-1].transpose(1, 2).unflatten(2, x.shape[2:])


def encode_flux2(pipeline, prompts):
    return {"prompt": pipeline.encode_prompt([*prompts, ""])[0]}


def run_kandinsky5(pipeline, teacher, condition, null, *, scale, steps, output="latent"):
    """Runs the pipeline on rows one by one, whose texts are cut to their lengths."""
    size = {key: teacher.options[key] for key in ("height", "width")}
    if "frames" in teacher.options:
        size["num_frames"] = teacher.options["frames"]
    pipeline.resolutions = [(size["width"], size["height"])]  # to which an image's is rounded
    found = []
    for i, x in enumerate(noise(teacher, len(condition))):
        x = x[None] if x.ndim == 4 else x[None, :, None]
        channels = x.shape[1]
        x = x.movedim(1, -1)
        if teacher.backbone.config.visual_cond:
            x = torch.nn.functional.pad(x, (0, channels + 1))
        given = {}
        for sign, rows in (("", condition[i : i + 1]), ("negative_", null)):
            length = int(rows["mask"].sum())
            given[f"{sign}prompt_embeds_qwen"] = rows["prompt"][:, :length]
            given[f"{sign}prompt_embeds_clip"] = rows["pooled"]
            given[f"{sign}prompt_cu_seqlens"] = torch.tensor([0, length], dtype=torch.int32)
        arguments = {"guidance_scale": scale, "num_inference_steps": steps, "output_type": output}
        out = pipeline(latents=x, **given, **size, **arguments)
        found.append(out[0])
    video = torch.cat(found)
    if output != "latent":
        return video if video.ndim == 4 else video.movedim(1, 2)
    return video.movedim(-1, 1).reshape(len(condition), *teacher.latent_shape)


LONG = 900  # the template is longer in bytes


def encode_kandinsky5(pipeline, prompts):
    found = [
        pipeline.encode_prompt([text], max_sequence_length=LONG)[:2] for text in [*prompts, ""]
    ]
    texts = [row[0] for row, _ in found]
    lengths = torch.tensor([len(text) for text in texts])
    assert len(set(lengths.tolist())) == 3
    padded = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
    mask = torch.arange(padded.shape[1]) < lengths[:, None]
    return {"prompt": padded, "mask": mask, "pooled": torch.cat([pooled for _, pooled in found])}


def run_hunyuan_video15(pipeline, teacher, condition, null, *, scale, steps, output="latent"):
    from diffusers import ClassifierFreeGuidance

    if pipeline.guider.guidance_scale != scale:
        pipeline.guider = ClassifierFreeGuidance(guidance_scale=scale)
    pipeline.vision_num_semantic_tokens = 4  # of zeros, which the network masks
    names = {"prompt": "prompt_embeds", "mask": "prompt_embeds_mask", "glyph": "prompt_embeds_2"}
    given = inputs(teacher, condition, null, steps, output, {}, names)
    for sign in ("", "negative_"):
        given[f"{sign}prompt_embeds_mask_2"] = given[f"{sign}prompt_embeds_2"].any(-1)
    given |= {"latents": noise(teacher, len(condition)), "num_frames": teacher.options["frames"]}
    if output == "latent":
        return pipeline(**given).frames
    videos = []
    for i in range(len(condition)):  # the VAE decodes one at a time
        row = {k: v[i : i + 1] if isinstance(v, torch.Tensor) else v for k, v in given.items()}
        videos.append(pipeline(**row).frames)
    return torch.cat(videos).transpose(1, 2)


def encode_hunyuan_video15(pipeline, prompts):
    texts = [*prompts, ""]
    prompt, mask, glyph, valid = pipeline.encode_prompt(texts, batch_size=len(texts))
    assert valid.any(1).tolist() == [True, False, False]
    return {"prompt": prompt, "mask": mask.bool(), "glyph": glyph * valid[..., None]}


class Harmless:
    """Does what the safety checker does where it finds nothing."""

    def to(self, device):
        return self

    def check_text_safety(self, text):
        return True


def run_cosmos_predict25(pipeline, teacher, condition, null, *, scale, steps, output="latent"):
    """Runs the pipeline with Euler steps, on texts that it leaves as they are: projected."""
    from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

    pipeline.safety_checker = Harmless()
    if isinstance(pipeline.scheduler, UniPCMultistepScheduler):
        pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    for path, module in pipeline.transformer.named_modules():
        if path.endswith("crossattn_proj"):
            module.__class__ = ProjectedOnce
    guidance = {"guidance_scale": scale - 1}
    given = inputs(teacher, condition, null, steps, output, guidance, TEXT)
    given |= {"latents": noise(teacher, len(condition)), "num_frames": teacher.options["frames"]}
    frames = pipeline(**given).frames
    return frames if output == "latent" else frames.transpose(1, 2)


def encode_cosmos_predict25(pipeline, prompts):
    prompt, null = pipeline.encode_prompt(list(prompts), max_sequence_length=LONG)
    assert prompt.shape[2] == 32
    with torch.no_grad():
        return {"prompt": pipeline.transformer.crossattn_proj(torch.cat([prompt, null[:1]]))}


UNGUIDED_LTX2 = {
    "stg_scale": 0.0,
    "audio_stg_scale": 0.0,
    "modality_scale": 1.0,
    "audio_modality_scale": 1.0,
    "guidance_rescale": 0.0,
    "audio_guidance_rescale": 0.0,
}


def run_ltx2(pipeline, teacher, condition, null, *, scale, steps, output="latent", audio=None):
    """Runs the pipeline on texts after its connectors; returns both streams as one sample."""
    rows, tokens = len(condition["prompt"]), noise(teacher, len(condition)).transpose(1, 2)
    width = condition["prompt"].shape[2]
    given = {}
    for sign, one in (("", condition), ("negative_", null)):
        both = torch.cat([shared(one, rows), shared(one, rows, "audio_prompt")], -1)
        given[f"{sign}prompt_embeds"] = both
        given[f"{sign}prompt_attention_mask"] = torch.ones(both.shape[:2])
    connectors = pipeline.connectors
    pipeline.register_modules(connectors=None)
    pipeline.connectors = lambda both, mask, padding_side: (
        both[..., :width],
        both[..., width:],
        mask,
    )
    sound, length = pipeline.audio_vae, teacher.tokens
    start = tokens[:, length:] * sound.latents_std + sound.latents_mean  # which it normalises
    video, heard = pipeline(
        **given,
        **UNGUIDED_LTX2,
        **{key: teacher.options[key] for key in ("height", "width", "frame_rate")},
        num_frames=teacher.options["frames"],
        guidance_scale=scale,
        audio_guidance_scale=scale if audio is None else audio,
        latents=tokens[:, :length],
        audio_latents=start,
        num_inference_steps=steps,
        output_type="pt" if output == "sound" else output,
        return_dict=False,
    )
    pipeline.connectors = connectors
    if output != "latent":
        return heard if output == "sound" else video.transpose(1, 2)
    vae = pipeline.vae
    scaling = vae.config.scaling_factor
    video = pipeline._normalize_latents(video, vae.latents_mean, vae.latents_std, scaling)
    heard = pipeline._pack_audio_latents(heard)
    heard = pipeline._normalize_audio_latents(heard, sound.latents_mean, sound.latents_std)
    return torch.cat([video.flatten(2), heard.transpose(1, 2)], 2)


def encode_ltx2(pipeline, prompts):
    prompt, mask, null, null_mask = pipeline.encode_prompt(list(prompts), max_sequence_length=48)
    hidden, masks = torch.cat([prompt, null[:1]]), torch.cat([mask, null_mask[:1]])
    with torch.no_grad():
        video, audio, kept = pipeline.connectors(hidden, masks, padding_side="left")
    assert kept.all() and not mask.all()
    return {"prompt": video, "audio_prompt": audio}


def cogvideox(**levels):
    return {
        "registered": "cogvideox",
        "arguments": levels,
        "run": run_cogvideox,
        "encode": encode_cogvideox,
        "text_length": 226,
        "scheduler": {key: levels[key] for key in levels if key == "snr_shift_scale"},
        "times": trailing,
    }


KANDINSKY5 = {
    "run": run_kandinsky5,
    "encode": encode_kandinsky5,
    "zeros": True,
    "length": LONG,
    "atol": 2e-3,  # the network rounds queries and keys to bfloat16
}
MORE = {
    "sana": {"run": run_sana, "encode": encode_sana},
    "chroma": {"run": run_chroma, "encode": encode_chroma},
    "cosmos_predict25": {
        "run": run_cosmos_predict25,
        "encode": encode_cosmos_predict25,
        "length": LONG,
        "given": {"safety_checker": Harmless()},
    },
    "flux2": {"run": run_flux2, "encode": encode_flux2, "scales": (1.0,)},
    "flux2_klein": {"run": run_flux2, "encode": encode_flux2},
    "hunyuan_video15": {"run": run_hunyuan_video15, "encode": encode_hunyuan_video15},
    "ltx2": {"run": run_ltx2, "encode": encode_ltx2, "length": 48},
    "ltx2_gated": {
        "registered": "ltx2",
        "arguments": {"gated": True},
        "encoders": lambda: ltx2_parts(16, 4, gated=True),
        "run": run_ltx2,
        "encode": encode_ltx2,
        "length": 48,
    },
    "kandinsky5": KANDINSKY5,
    "kandinsky5_image": KANDINSKY5,
    "cogvideox_2b": cogvideox(use_rotary_positional_embeddings=False, snr_shift_scale=3.0),
    "cogvideox_5b": cogvideox(),
    "cogvideox_1.5": cogvideox(patch_size_t=2, frames=13),
}
"""How each family's pipeline runs and encodes, and what differs from :data:`TINY`."""


def has_ltx2():
    """Returns whether the installed diffusers has LTX-2 as it is supported."""
    from diffusers import LTX2VideoTransformer3DModel

    return "sigma" in inspect.signature(LTX2VideoTransformer3DModel.forward).parameters


if not has_ltx2():
    del MORE["ltx2"], MORE["ltx2_gated"]


def registered(name):
    return MORE[name].get("registered", name)


def arguments_of(name):
    """Returns the arguments of a teacher with random weights."""
    tiny = TINY[registered(name)]
    short = {**SHORT, "text_length": MORE[name].get("text_length", 7)}
    return {**tiny.sizes, **tiny.options, **short, **MORE[name].get("arguments", {})}


@functools.cache
def more(name):
    teacher = teachers.get(registered(name))(**arguments_of(name)).requires_grad_(False)
    if "zeros" in MORE[name]:  # the network starts without modulations, which hide text and time
        generator = torch.Generator().manual_seed(0)
        for parameter in teacher.parameters():
            if not parameter.any():
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return teacher


def pipeline_of(name, *, text=False):
    """Makes the pipeline around a teacher, with its text encoders if they are needed."""
    import diffusers

    teacher, tiny = more(name), TINY[registered(name)]
    scheduler = getattr(diffusers, tiny.scheduler_class)
    encoders = MORE[name].get("encoders", tiny.encoders)()
    return bare(
        teacher.layout.pipeline,
        transformer=teacher.backbone,
        scheduler=scheduler(**{**tiny.scheduler, **MORE[name].get("scheduler", {})}),
        vae=tiny.vae(teacher.latent_shape[0]),
        **{
            part: None if not text and part.startswith(TEXT_PARTS) else encoders[part]
            for part in encoders
        },
        **{part: getattr(diffusers, found)() for part, found in tiny.components.items()},
        **tiny.more,
    )
