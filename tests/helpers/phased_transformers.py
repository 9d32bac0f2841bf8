"""Small transformers of two phases, and their outputs beside those of stock networks."""

import copy
import functools

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict
from torch import nn

from pdmd.export.modules.phased_transformer import PhasedTransformer
from tests.helpers.tiny_families import family
from tests.helpers.tiny_flows import flow

TIMES = (0.9, 0.3)  # of the two phases
TEACHERS = {"qwen_image": family, "wan_2.1": family, "flux": flow, "sd3": flow, "ltx": flow}
TEACHERS |= {"z_image": flow, "wan_i2v": flow}
FULL = ("qwen_image", "flux", "sd3", "z_image", "ltx", "wan_2.1")


def first(name):
    teacher = TEACHERS[name](name)
    return getattr(teacher, "first", teacher)


@functools.cache
def built(name, adapted):
    """Returns a transformer of two phases, and its arguments."""
    teacher = first(name)
    config = {k: v for k, v in teacher.backbone.config.items() if not k.startswith("_")}
    layout = teacher.layout
    maps = [p for p, m in teacher.backbone.named_modules() if isinstance(m, nn.Linear)]
    additions = [{path: [2, 0.5 + k] for path in maps} for k in range(2)]
    torch.manual_seed(0)
    model = PhasedTransformer(
        network_class=layout.network,
        network_config=config,
        boundaries=[0.5],
        networks_of=[0, 0] if adapted else [0, 1],
        time_scale=layout.time_scale,
        time_offset=layout.time_offset,
        time_argument=layout.time_argument,
        adapters=additions if adapted else None,
        unguided=dict(layout.unguided),
    )
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "phase_" in key or key.endswith("pad_token"):  # or not initialized by diffusers
                parameter.copy_(0.1 * torch.randn_like(parameter))
            elif parameter.std() == 0:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def phased(name="qwen_image", adapted=False):
    return copy.deepcopy(built(name, adapted))


@functools.cache
def inputs(name):
    teacher = first(name)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, *teacher.latent_shape, generator=generator)
    whole = TEACHERS[name](name)
    return x, whole.encode(whole.prompts[:1])


def around(model, name):
    teacher = first(name).with_backbone(first(name).backbone)
    teacher.backbone = model
    return teacher


def outputs(model, name="qwen_image", noisy=1.0):
    """Returns the velocities of both phases."""
    teacher = around(model, name)
    x, condition = inputs(name)
    x = noisy * x
    with torch.no_grad():
        return [teacher.network(x, torch.tensor([t]), condition) for t in TIMES]


def stock(model, name="qwen_image"):
    """Returns copies of the networks, as stock models."""
    return [copy.deepcopy(network) for network in model.networks]


def same(model, networks, name="qwen_image", noisy=1.0):
    found = outputs(model, name, noisy)
    for i, network in enumerate(networks):
        teacher = around(network, name)
        x, condition = inputs(name)
        with torch.no_grad():
            expected = teacher.network(noisy * x, torch.tensor([TIMES[i]]), condition)
        torch.testing.assert_close(found[i], expected, rtol=0, atol=1e-6)


def difference(a, b):
    return min(float((x - y).abs().max()) for x, y in zip(a, b, strict=True))


@functools.cache
def lora(name="qwen_image", seed=0):
    network = copy.deepcopy(first(name).backbone)
    torch.manual_seed(seed)
    targets = ["to_q", "to_k", "to_out.0"]
    network.add_adapter(LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    return {f"transformer.{k}": v for k, v in get_peft_model_state_dict(network).items()}


def load(model, name="qwen_image", adapter="style", seed=0, **more):
    model.load_lora_adapter(lora(name, seed), adapter_name=adapter, **more)


def layers(network):
    return [m for m in network.modules() if isinstance(m, BaseTunerLayer)]
