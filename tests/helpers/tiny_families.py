"""Model families with tiny random networks, and the pipelines of diffusers around them."""

import functools

import torch
from tensordict import TensorDict

from pdmd import sample_ode
from pdmd.diffusion.sampling import initial_noise
from pdmd.teachers import QwenImageTeacher, RoutedTeacher, WanTeacher
from pdmd.teachers.families.tokens import pack, unpack

QWEN = {
    "height": 64,
    "width": 48,
    "num_layers": 2,
    "num_attention_heads": 3,
    "attention_head_dim": 16,
    "joint_attention_dim": 16,
    "latent_channels": 4,
    "text_length": 7,
    "random_prompts": 3,
}
WAN = {
    "height": 32,
    "width": 16,
    "frames": 9,
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "ffn_dim": 32,
    "text_dim": 32,
    "latent_channels": 16,
    "text_length": 6,
    "random_prompts": 3,
}
FAMILIES = {
    "qwen_image": (QwenImageTeacher, QWEN),
    "wan_2.1": (WanTeacher, {**WAN, "boundary_ratio": 0.0}),
    "wan_2.2_a14b": (WanTeacher, WAN),
    "wan_2.2_5b": (
        WanTeacher,
        {**WAN, "boundary_ratio": 0.0, "latent_channels": 48, "spatial_compression": 16}
        | {"height": 64, "width": 32},
    ),
}


@functools.cache
def family(name):
    cls, arguments = FAMILIES[name]
    return cls.from_config(**arguments).requires_grad_(False)


def transformers(teacher):
    if isinstance(teacher, RoutedTeacher):
        return [part.backbone for part in teacher.routed.denoisers]
    return [teacher.backbone]


def scheduler(**arguments):
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**arguments)


def qwen_vae():
    from diffusers import AutoencoderKLQwenImage

    torch.manual_seed(0)
    return AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        num_res_blocks=1,
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.5, 0.5, 2.0, 1.0],
    ).eval()


def wan_vae(z_dim=16, spatial=8):
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    return AutoencoderKLWan(
        base_dim=4,
        z_dim=z_dim,
        num_res_blocks=1,
        scale_factor_spatial=spatial,
        latents_mean=[0.1 * i for i in range(z_dim)],
        latents_std=[1 + 0.1 * i for i in range(z_dim)],
    ).eval()


def qwen_pipeline(teacher, *, text=(None, None), **arguments):
    from diffusers import QwenImagePipeline

    pipeline = QwenImagePipeline(
        scheduler=scheduler(**arguments),
        vae=qwen_vae(),
        tokenizer=text[0],
        text_encoder=text[1],
        transformer=teacher.backbone,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def wan_pipeline(teacher, *, text=(None, None), ratio=0.875, expand=False, **arguments):
    from diffusers import WanPipeline

    parts = transformers(teacher)
    channels, spatial = teacher.latent_shape[0], 16 if expand else 8
    pipeline = WanPipeline(
        tokenizer=text[0],
        text_encoder=text[1],
        vae=wan_vae(channels, spatial),
        scheduler=scheduler(**arguments),
        transformer=parts[0],
        transformer_2=parts[1] if len(parts) > 1 else None,
        boundary_ratio=ratio if len(parts) > 1 else None,
        expand_timesteps=expand,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def noise(teacher, batch, seed=0):
    return initial_noise(teacher, batch, torch.Generator().manual_seed(seed))


def run_qwen(pipeline, teacher, condition, null, *, scale, steps, seed=0, **more):
    rows = len(condition["prompt"])
    out = pipeline(
        prompt_embeds=condition["prompt"],
        prompt_embeds_mask=condition["mask"],
        negative_prompt_embeds=null["prompt"].expand(rows, -1, -1),
        negative_prompt_embeds_mask=null["mask"].expand(rows, -1),
        true_cfg_scale=scale,
        latents=pack(noise(teacher, rows, seed)),
        height=teacher.options["height"],
        width=teacher.options["width"],
        num_inference_steps=steps,
        output_type="latent",
        **more,
    ).images
    return unpack(out, *teacher.latent_shape[1:])


def run_wan(pipeline, teacher, condition, null, *, scale, scale_2=None, steps, seed=0):
    first = teacher.first if isinstance(teacher, RoutedTeacher) else teacher
    rows = len(condition["prompt"])
    return pipeline(
        prompt_embeds=condition["prompt"],
        negative_prompt_embeds=null["prompt"].expand(rows, -1, -1),
        guidance_scale=scale,
        guidance_scale_2=scale_2,
        latents=noise(teacher, rows, seed),
        height=first.options["height"],
        width=first.options["width"],
        num_frames=first.options["frames"],
        num_inference_steps=steps,
        output_type="latent",
    ).frames


def unpadded(row):
    length = int(row["mask"].sum())
    return TensorDict(
        {k: v[:, :length] for k, v in row.exclude("lengths").items()}, batch_size=[1]
    )


def ode(teacher, condition, times, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return sample_ode(teacher, condition, times=times, generator=generator)


def close(a, b, atol=2e-5):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)
