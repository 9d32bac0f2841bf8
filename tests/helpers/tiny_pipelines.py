"""Pipelines of diffusers around tiny flow families, and how each is run on a condition."""

import torch
from PIL import Image

from pdmd.teachers.families.tokens import pack, unpack
from tests.helpers.tiny_families import WAN, noise, scheduler, transformers, wan_vae


def bare(name, **parts):
    """Makes a pipeline whose parts not given are absent."""
    import diffusers

    pipeline = getattr(diffusers, name)(**parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def image_vae(channels):
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4,) * 4,
        norm_num_groups=2,
        layers_per_block=1,
        latent_channels=channels,
        sample_size=32,
        scaling_factor=1.5,
        shift_factor=0.06,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).eval()


def shared(null, rows, key="prompt"):
    return null[key].expand(rows, *null[key].shape[1:])


SD3 = {
    "height": 64,
    "width": 48,
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 12,
    "latent_channels": 4,
    "pos_embed_max_size": 6,
    "text_length": 7,
    "random_prompts": 3,
}


def sd3_pipeline(teacher, *, text=(None,) * 6, **arguments):
    names = [f"{part}{i}" for i in ("", "_2", "_3") for part in ("tokenizer", "text_encoder")]
    return bare(
        "StableDiffusion3Pipeline",
        transformer=teacher.backbone,
        scheduler=scheduler(**arguments),
        vae=image_vae(teacher.latent_shape[0]),
        **dict(zip(names, text, strict=True)),
    )


def run_sd3(pipeline, teacher, condition, null, *, scale, steps, output="latent", **more):
    rows = len(condition["prompt"])
    return pipeline(
        prompt_embeds=condition["prompt"],
        pooled_prompt_embeds=condition["pooled"],
        negative_prompt_embeds=shared(null, rows),
        negative_pooled_prompt_embeds=shared(null, rows, "pooled"),
        guidance_scale=scale,
        latents=noise(teacher, rows),
        height=teacher.options["height"],
        width=teacher.options["width"],
        num_inference_steps=steps,
        output_type=output,
        **more,
    ).images


SD3_IDLE = r"transformer_blocks\.1\..*add_q_proj|transformer_blocks\.1\..*norm_added_q"


FLUX = {
    "height": 64,
    "width": 48,
    "num_layers": 1,
    "num_single_layers": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 12,
    "latent_channels": 4,
    "text_length": 7,
    "random_prompts": 3,
}


def flux_pipeline(teacher, *, text=(None,) * 4, **arguments):
    names = ("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2")
    return bare(
        "FluxPipeline",
        transformer=teacher.backbone,
        scheduler=scheduler(**arguments),
        vae=image_vae(teacher.latent_shape[0]),
        **dict(zip(names, text, strict=True)),
    )


def run_flux(pipeline, teacher, condition, null, *, scale, steps, output="latent", **more):
    rows = len(condition["prompt"])
    out = pipeline(
        prompt_embeds=condition["prompt"],
        pooled_prompt_embeds=condition["pooled"],
        negative_prompt_embeds=shared(null, rows),
        negative_pooled_prompt_embeds=shared(null, rows, "pooled"),
        true_cfg_scale=scale,
        latents=pack(noise(teacher, rows)),
        height=teacher.options["height"],
        width=teacher.options["width"],
        num_inference_steps=steps,
        output_type=output,
        **({"guidance_scale": teacher.options["guidance_embedded"] or 7.0} | more),
    ).images
    return unpack(out, *teacher.latent_shape[1:]) if output == "latent" else out


Z_IMAGE = {
    "height": 64,
    "width": 48,
    "num_layers": 1,
    "num_refiner_layers": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "text_dim": 16,
    "latent_channels": 4,
    "text_length": 40,
    "random_prompts": 3,
}


def z_image_pipeline(teacher, *, text=(None,) * 2, **arguments):
    return bare(
        "ZImagePipeline",
        transformer=teacher.backbone,
        scheduler=scheduler(**arguments),
        vae=image_vae(teacher.latent_shape[0]),
        **dict(zip(("tokenizer", "text_encoder"), text, strict=True)),
    )


def cut(condition):
    return [text[mask] for text, mask in zip(condition["prompt"], condition["mask"], strict=True)]


def run_z_image(pipeline, teacher, condition, null, *, scale, steps, output="latent", **more):
    rows = len(condition["prompt"])
    return pipeline(
        prompt_embeds=cut(condition),
        negative_prompt_embeds=cut(null) * rows,
        guidance_scale=scale - 1,  # the pipeline counts from zero
        cfg_normalization=teacher.options["cfg_normalization"],
        latents=noise(teacher, rows),
        height=teacher.options["height"],
        width=teacher.options["width"],
        num_inference_steps=steps,
        output_type=output,
        **more,
    ).images


LTX = {
    "height": 64,
    "width": 96,
    "frames": 17,
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 10,
    "text_dim": 32,
    "latent_channels": 4,
    "text_length": 9,
    "random_prompts": 3,
}


def ltx_vae(channels, timed):
    from diffusers import AutoencoderKLLTXVideo

    torch.manual_seed(0)
    vae = AutoencoderKLLTXVideo(
        latent_channels=channels,
        block_out_channels=(4,) * 4,
        decoder_block_out_channels=(4,) * 4,
        layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 5,
        timestep_conditioning=timed,
        scaling_factor=1.5,
    ).eval()
    vae.latents_mean.copy_(torch.tensor([0.1, -0.2, 0.3, 0.0]))
    vae.latents_std.copy_(torch.tensor([1.5, 0.5, 2.0, 1.0]))
    return vae


def ltx_pipeline(teacher, *, text=(None,) * 2, timed=False, **arguments):
    return bare(
        "LTXPipeline",
        transformer=teacher.backbone,
        scheduler=scheduler(**arguments),
        vae=ltx_vae(teacher.latent_shape[0], timed),
        **dict(zip(("tokenizer", "text_encoder"), text, strict=True)),
    )


def run_ltx(pipeline, teacher, condition, null, *, scale, steps, output="latent", **more):
    rows, shape = len(condition["prompt"]), teacher.latent_shape[1:]
    out = pipeline(
        prompt_embeds=condition["prompt"],
        prompt_attention_mask=condition["mask"],
        negative_prompt_embeds=shared(null, rows),
        negative_prompt_attention_mask=shared(null, rows, "mask"),
        guidance_scale=scale,
        latents=ltx_layout(noise(teacher, rows)),
        height=teacher.options["height"],
        width=teacher.options["width"],
        num_frames=teacher.options["frames"],
        frame_rate=teacher.options["frame_rate"],
        num_inference_steps=steps,
        output_type=output,
        **more,
    ).frames
    if output == "latent":
        return out.transpose(1, 2).unflatten(2, shape)
    return out.transpose(1, 2)  # frames came before channels


def ltx_layout(x):
    return x.flatten(2).transpose(1, 2)


LTX_SCHEDULER = {
    "use_dynamic_shifting": True,
    "base_shift": 0.95,
    "max_shift": 2.05,
    "base_image_seq_len": 1024,
    "max_image_seq_len": 4096,
    "shift_terminal": 0.1,
}


WAN_I2V = {**WAN, "latent_channels": 4}


IMAGE = {"image_dim": 16, "image_length": 5}


def patched_wan_vae(z_dim):
    """The VAE of the 2.2 5B, which packs pixels by two."""
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    return AutoencoderKLWan(
        base_dim=4,
        decoder_base_dim=4,
        z_dim=z_dim,
        num_res_blocks=1,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        is_residual=True,
        scale_factor_spatial=16,
        latents_mean=[0.1 * i for i in range(z_dim)],
        latents_std=[1 + 0.1 * i for i in range(z_dim)],
    ).eval()


def wan_i2v_pipeline(teacher, *, text=(None,) * 4, **arguments):
    parts = transformers(teacher)
    whole = parts[0].config.in_channels == parts[0].config.out_channels
    names = ("tokenizer", "text_encoder", "image_processor", "image_encoder")
    return bare(
        "WanImageToVideoPipeline",
        vae=(patched_wan_vae if whole else wan_vae)(teacher.latent_shape[0]),
        scheduler=scheduler(**arguments),
        transformer=parts[0],
        transformer_2=parts[1] if len(parts) > 1 else None,
        boundary_ratio=0.9 if len(parts) > 1 else None,
        expand_timesteps=whole,
        **dict(zip(names, text, strict=True)),
    )


def run_wan_i2v(pipeline, teacher, condition, null, *, scale, steps, output="latent", **more):
    """Runs the pipeline on rows one by one, in place of whose encoders a condition stands."""

    first = getattr(teacher, "first", teacher)
    frames = torch.ones(1, 1, *teacher.latent_shape[1:])
    frames[:, :, 0] = 0
    scales = scale if isinstance(scale, tuple) else (scale, scale)
    made = []
    for i, start in enumerate(noise(teacher, len(condition["prompt"]))):
        row = condition[i : i + 1]
        latents = (start[None], row["first"], frames)[: 3 if first.replaces else 2]
        pipeline.prepare_latents = lambda *_, latents=latents: latents
        pipeline.encode_image = lambda *_, row=row: row["image"]
        video = pipeline(
            image=Image.new("RGB", (8, 8)),
            prompt_embeds=row["prompt"],
            negative_prompt_embeds=null["prompt"],
            guidance_scale=scales[0],
            guidance_scale_2=scales[1] if len(transformers(teacher)) > 1 else None,
            height=first.options["height"],
            width=first.options["width"],
            num_frames=first.options["frames"],
            num_inference_steps=steps,
            output_type=output,
            **more,
        ).frames
        made.append(video)
    return torch.cat(made)
