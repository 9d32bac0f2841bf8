"""More tiny families and the pipelines of diffusers around them: SANA, Chroma and others.

As :mod:`tests.helpers.tiny_flows`, described by the same :class:`Family`.
"""

import functools

import torch

from pdmd.teachers.base import teachers
from pdmd.teachers.families.tiny.encoders import (
    clip_encoder,
    gemma_encoder,
    mistral_encoder,
    qwen3_encoder,
    qwen_encoder,
)
from pdmd.teachers.families.tiny.vaes import cogvideox_vae, deep_vae, flux2_vae, hunyuan_vae
from pdmd.teachers.families.tokens import pack, unpack
from tests.helpers.tiny_encoders import t5
from tests.helpers.tiny_families import noise, scheduler
from tests.helpers.tiny_pipelines import bare, image_vae, shared


def piped(name, vae, *parts):
    """Returns a function that makes a pipeline around a teacher, given text encoders."""

    def make(teacher, *, text=None, **arguments):
        return bare(
            name,
            transformer=teacher.backbone,
            scheduler=scheduler(**arguments),
            vae=vae(teacher.latent_shape[0]),
            **dict(zip(parts, text or (None,) * len(parts), strict=True)),
        )

    return make


TEXT = ("tokenizer", "text_encoder")
SMALL = {"height": 64, "width": 48, "random_prompts": 3, "text_length": 7}


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


MASKED = {"prompt": "prompt_embeds", "mask": "prompt_attention_mask"}

SANA = {
    **SMALL,
    "height": 96,
    "width": 64,
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 8,
    "caption_channels": 16,
    "latent_channels": 4,
}


def run_sana(pipeline, teacher, condition, null, *, scale, steps, output="latent"):
    guidance = {"guidance_scale": scale, "use_resolution_binning": False, "negative_prompt": None}
    return pipeline(
        latents=noise(teacher, len(condition)),
        **inputs(teacher, condition, null, steps, output, guidance, MASKED),
    ).images


def encode_sana(pipeline, prompts):
    import inspect

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


CHROMA = {
    **SMALL,
    "num_layers": 1,
    "num_single_layers": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "joint_attention_dim": 32,
    "latent_channels": 4,
    "approximator_num_channels": 64,
    "approximator_hidden_dim": 16,
    "approximator_layers": 2,
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


COGVIDEOX = {
    "height": 64,
    "width": 48,
    "frames": 9,
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "text_embed_dim": 32,
    "latent_channels": 4,
    "random_prompts": 3,
}


def cogvideox_pipeline(teacher, *, text=(None, None), **arguments):
    from diffusers import CogVideoXDDIMScheduler

    return bare(
        "CogVideoXPipeline",
        transformer=teacher.backbone,
        scheduler=CogVideoXDDIMScheduler(
            **{**teacher.betas, **arguments}, timestep_spacing="trailing", clip_sample=False
        ),
        vae=cogvideox_vae(teacher.latent_shape[0]),
        **dict(zip(TEXT, text, strict=True)),
    )


def run_cogvideox(pipeline, teacher, condition, null, *, scale, steps, output="latent"):
    given = inputs(
        teacher,
        condition,
        null,
        steps,
        output,
        {"guidance_scale": scale},
        {"prompt": "prompt_embeds"},
    )
    frames = {"num_frames": teacher.options["frames"]}
    latents = noise(teacher, len(condition)).transpose(1, 2)
    return pipeline(latents=latents, **given, **frames).frames.transpose(1, 2)


def encode_cogvideox(pipeline, prompts):
    prompt, null = pipeline.encode_prompt(list(prompts))
    return {"prompt": torch.cat([prompt, null[:1]])}


def trailing(pipeline):
    return [*((pipeline.scheduler.timesteps + 1) / 1000).tolist(), 0.0]


def cogvideox(arguments, **levels):
    return {
        "arguments": {**COGVIDEOX, **arguments, **levels},
        "pipeline": cogvideox_pipeline,
        "run": run_cogvideox,
        "scheduler": levels,
        "text": lambda: t5(32),
        "encode": encode_cogvideox,
        "times": trailing,
        "registered": "cogvideox",
    }


FLUX2 = {
    **SMALL,
    "num_layers": 1,
    "num_single_layers": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "joint_attention_dim": 24,
    "latent_channels": 4,
}


def run_flux2(pipeline, teacher, condition, null, *, scale, steps, output="latent"):
    embedded = teacher.options["guidance_embedded"] is not None
    guidance = {"guidance_scale": teacher.options["guidance_embedded"] if embedded else scale}
    given = inputs(teacher, condition, null, steps, output, guidance, {"prompt": "prompt_embeds"})
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


KANDINSKY5 = {
    "height": 64,
    "width": 48,
    "model_dim": 32,
    "ff_dim": 32,
    "time_dim": 16,
    "num_text_blocks": 1,
    "num_visual_blocks": 2,
    "axes_dims": (4, 6, 6),
    "in_text_dim": 16,
    "in_text_dim2": 12,
    "latent_channels": 4,
    "random_prompts": 3,
    "text_length": 7,
}


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


def kandinsky5(name, vae, shift, **arguments):
    return {
        "arguments": {**KANDINSKY5, **arguments},
        "pipeline": piped(name, vae, *TEXT, *(f"{part}_2" for part in TEXT)),
        "run": run_kandinsky5,
        "scheduler": {"shift": shift},
        "text": lambda: (*qwen_encoder(16), *clip_encoder(12)),
        "encode": encode_kandinsky5,
        "zeros": True,
        "length": LONG,
        "atol": 2e-3,  # the network rounds queries and keys to bfloat16
    }

MORE = {
    "sana": {
        "arguments": SANA,
        "pipeline": piped("SanaPipeline", deep_vae, *TEXT),
        "run": run_sana,
        "scheduler": {"shift": 3.0},
        "text": lambda: gemma_encoder(16),
        "encode": encode_sana,
    },
    "chroma": {
        "arguments": CHROMA,
        "pipeline": piped("ChromaPipeline", image_vae, *TEXT),
        "run": run_chroma,
        "text": lambda: t5(32),
        "encode": encode_chroma,
    },
    "flux2": {
        "arguments": FLUX2,
        "pipeline": piped("Flux2Pipeline", flux2_vae, *TEXT),
        "run": run_flux2,
        "scheduler": {"use_dynamic_shifting": True},
        "text": lambda: mistral_encoder(8),
        "encode": encode_flux2,
        "scales": (1.0,),
    },
    "flux2_klein": {
        "arguments": FLUX2,
        "pipeline": piped("Flux2KleinPipeline", flux2_vae, *TEXT),
        "run": run_flux2,
        "scheduler": {"use_dynamic_shifting": True},
        "text": lambda: qwen3_encoder(8),
        "encode": encode_flux2,
    },
    "kandinsky5": kandinsky5("Kandinsky5T2VPipeline", hunyuan_vae, 10.0, frames=9),
    "kandinsky5_image": kandinsky5("Kandinsky5T2IPipeline", image_vae, 3.0),
    "cogvideox_2b": cogvideox({"use_rotary_positional_embeddings": False}, snr_shift_scale=3.0),
    "cogvideox_5b": cogvideox({}),
    "cogvideox_1.5": cogvideox({"patch_size_t": 2, "frames": 13}),
}
"""By the registered name: arguments, pipeline, how it runs, its scheduler as released, its text
encoders and what they encode."""


def registered(name):
    return MORE[name].get("registered", name)


@functools.cache
def more(name):
    teacher = teachers.get(registered(name))(**MORE[name]["arguments"]).requires_grad_(False)
    if "zeros" in MORE[name]:  # the network starts without modulations, which hide text and time
        generator = torch.Generator().manual_seed(0)
        for parameter in teacher.parameters():
            if not parameter.any():
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return teacher
