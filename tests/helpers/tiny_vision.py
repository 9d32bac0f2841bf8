"""Folders of tiny vision, image-text and video networks with random weights."""

import json

import torch

from tests.helpers.tiny_encoders import clip

__all__ = ["clip_folder", "dinov2_folder", "siglip_folder", "videomae_folder"]

IMAGES = {
    "do_resize": True,
    "resample": 3,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def dinov2_folder(path):
    from transformers import Dinov2Config, Dinov2Model

    return _save(path, Dinov2Model, Dinov2Config(**SMALL, image_size=14, patch_size=7), 14)


def videomae_folder(path, frames=4):
    from transformers import VideoMAEConfig, VideoMAEModel

    config = VideoMAEConfig(
        **SMALL,
        intermediate_size=16,
        image_size=16,
        patch_size=8,
        num_frames=frames,
        tubelet_size=2,
        use_mean_pooling=False,
    )
    return _save(path, VideoMAEModel, config, 16, "VideoMAEImageProcessor")


def clip_folder(path):
    from transformers import CLIPConfig, CLIPModel

    tokenizer, text = clip(16)
    config = CLIPConfig(
        text_config=text.config.to_dict(),
        vision_config={**SMALL, "intermediate_size": 16, "image_size": 16, "patch_size": 8},
        projection_dim=8,
    )
    tokenizer.save_pretrained(path)
    return _save(path, CLIPModel, config, 16, "CLIPImageProcessor")


def siglip_folder(path):
    """Its text network has no mask, and reads the last token of a text's padding."""
    from transformers import SiglipConfig, SiglipModel

    tokenizer, text = clip(16)
    small = {**SMALL, "intermediate_size": 16}
    words = {"vocab_size": text.config.vocab_size, "max_position_embeddings": 16}
    config = SiglipConfig(
        text_config={**small, **words, "projection_size": 16},
        vision_config={**small, "image_size": 16, "patch_size": 8},
    )
    tokenizer.model_input_names = ["input_ids"]
    tokenizer.save_pretrained(path)
    return _save(path, SiglipModel, config, 16, "SiglipImageProcessor")


def _save(path, network, config, side, processor="BitImageProcessor"):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network(config).eval().save_pretrained(path)
    size = {"height": side, "width": side}
    crop = {"do_center_crop": True, "crop_size": size}
    settings = {**IMAGES, **crop, "size": size, "image_processor_type": processor}
    (path / "preprocessor_config.json").write_text(json.dumps(settings))
    return path
