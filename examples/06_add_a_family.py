"""Adds the AuraFlow pipeline of diffusers as a model family, and runs the conformance checks."""

from pdmd import PhasePlan, teachers
from pdmd.conformance import check
from pdmd.teachers.families.layouts import PipelineLayout
from pdmd.teachers.families.text import TextTeacher
from pdmd.teachers.families.tokens import check_size


@teachers.register("aura_flow")
class AuraFlowTeacher(TextTeacher):
    """AuraFlow over latents of shape (4, H / 8, W / 8), on rectified flow."""

    layout = PipelineLayout(
        pipeline="AuraFlowPipeline",
        network="AuraFlowTransformer2DModel",
        vae="AutoencoderKL",
        task="text-to-image",
    )
    released = {
        "num_mmdit_layers": 4,
        "num_single_dit_layers": 32,
        "num_attention_heads": 12,
        "attention_head_dim": 256,
        "joint_attention_dim": 2048,
        "pos_embed_max_size": 9216,  # images of up to 1536 x 1536 pixels
    }
    options = {"height": 1024, "width": 1024, "compression": 8}
    text_length = 256
    random_length = 256

    @classmethod
    def latents(cls, config, *, height, width, compression):
        check_size(compression * config.patch_size, height=height, width=width)
        return config.in_channels, height // compression, width // compression

    @classmethod
    def network_config(cls, **sizes):
        width = sizes["num_attention_heads"] * sizes["attention_head_dim"]
        return {**sizes, "caption_projection_dim": width}

    @classmethod
    def encode_texts(cls, pipeline, texts, length):
        device = pipeline.text_encoder.device
        prompt, *_ = pipeline.encode_prompt(
            texts, do_classifier_free_guidance=False, device=device, max_sequence_length=length
        )
        return {"prompt": prompt}

    def network(self, x_t, t, condition):
        prompt = self.conditioned(condition, x_t)["prompt"]
        dtype = self.backbone.dtype
        velocity = self.backbone(
            hidden_states=x_t.to(dtype),
            encoder_hidden_states=prompt.to(dtype),
            timestep=t.to(dtype),  # in [0, 1], and 1 is noise
            return_dict=False,
        )[0]
        return velocity.to(x_t.dtype)


teacher = AuraFlowTeacher.from_config(
    height=64,
    width=64,
    num_mmdit_layers=1,
    num_single_dit_layers=1,
    num_attention_heads=2,
    attention_head_dim=16,
    joint_attention_dim=32,
    pos_embed_max_size=64,
    text_length=8,
)
report = check(teacher)
print(report)
assert report.passed

full = AuraFlowTeacher.from_config(meta=True)
billions = sum(p.numel() for p in full.parameters()) / 1e9
print(f"released size: {billions:.1f} B parameters, {PhasePlan.uniform(4).nfe} NFE as a student")
