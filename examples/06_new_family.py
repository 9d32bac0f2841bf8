"""Adds a model family of diffusers, AuraFlow, and checks it."""

import math

from pdmd import teachers
from pdmd.conformance import check
from pdmd.teachers.families.layouts import PipelineLayout
from pdmd.teachers.families.text import TextTeacher
from pdmd.teachers.families.tokens import check_size


class AuraFlowTeacher(TextTeacher):
    """AuraFlow over latents of shape (4, H / 8, W / 8)."""

    layout = PipelineLayout(
        pipeline="AuraFlowPipeline", network="AuraFlowTransformer2DModel", vae="AutoencoderKL"
    )
    released = {
        "num_mmdit_layers": 4,
        "num_single_dit_layers": 32,
        "num_attention_heads": 12,
        "attention_head_dim": 256,
        "joint_attention_dim": 2048,
        "caption_projection_dim": 3072,
        "pos_embed_max_size": 4096,
    }
    options = {"height": 1024, "width": 1024, "compression": 8}
    latents_per_token = 4
    text_length = random_length = 256

    @classmethod
    def latents(cls, config, *, height, width, compression):
        pixels = compression * config.patch_size
        check_size(pixels, height=height, width=width)
        if max(height, width) > pixels * math.isqrt(config.pos_embed_max_size):
            raise ValueError(f"{height} x {width} pixels exceed the network's table of positions")
        return config.in_channels, height // compression, width // compression

    @classmethod
    def encode_texts(cls, pipeline, texts, length):
        embeddings, *_ = pipeline.encode_prompt(
            texts, do_classifier_free_guidance=False, max_sequence_length=length
        )
        return {"prompt": embeddings}

    def default_shift(self):
        return 1.73

    def network(self, x_t, t, condition):
        rows, dtype = self.conditioned(condition, x_t), self.backbone.dtype
        velocity = self.backbone(
            x_t.to(dtype),
            encoder_hidden_states=rows["prompt"].to(dtype),
            timestep=t.float(),
            return_dict=False,
        )[0]
        return velocity.to(x_t.dtype)


teachers.register("aura_flow")(AuraFlowTeacher.from_arguments)

if __name__ == "__main__":
    teacher = AuraFlowTeacher.from_config(
        height=64,
        width=48,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        num_attention_heads=2,
        attention_head_dim=16,
        joint_attention_dim=32,
        caption_projection_dim=32,
    )
    report = check(teacher)
    print(report)
    assert report.passed
