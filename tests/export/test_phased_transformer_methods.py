"""Public methods of stock classes act on every network of a transformer of phases, or raise.

All of them are listed here: those of a newer diffusers that are not make a test fail.
"""

import inspect

import diffusers
import pytest
import torch
from diffusers import FirstBlockCacheConfig
from peft import LoraConfig
from torch import nn

from tests.helpers.phased_transformers import FULL, built, first, layers, load, phased, same, stock

FILE = "pytorch_lora_weights.safetensors"


def loaded(*then):
    def act(model, folder):
        load(model)
        load(model, adapter="other", seed=1)
        for name, *arguments in then:
            getattr(model, name)(*arguments)

    return act


def call(name, *arguments, **more):
    return lambda model, folder: getattr(model, name)(*arguments, **more)


def add(model, folder):
    model.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=True), "new")


def saved_adapter(model, folder):
    load(model)
    model.save_lora_adapter(folder, "style")
    model.unload_lora()
    assert not any(layers(model))
    model.load_lora_adapter(folder, prefix=None, weight_name=FILE, adapter_name="again")


ON_EVERY_NETWORK = {
    "load_lora_adapter": (loaded(), layers),
    "save_lora_adapter": (saved_adapter, layers),
    "add_adapter": (add, layers),
    "set_adapter": (
        loaded(("set_adapter", "style")),
        lambda n: {*layers(n)[0].active_adapters} == {"style"},
    ),
    "set_adapters": (
        loaded(("set_adapters", ["style", "other"], [0.5, 2.0])),
        lambda n: layers(n)[0].scaling == {"style": 0.5, "other": 2.0},
    ),
    "active_adapters": (
        loaded(("active_adapters",)),
        lambda n: n.active_adapters(),
    ),
    "disable_adapters": (loaded(("disable_adapters",)), lambda n: layers(n)[0].disable_adapters),
    "disable_lora": (loaded(("disable_lora",)), lambda n: layers(n)[0].disable_adapters),
    "enable_adapters": (
        loaded(("disable_adapters",), ("enable_adapters",)),
        lambda n: not layers(n)[0].disable_adapters,
    ),
    "enable_lora": (
        loaded(("disable_lora",), ("enable_lora",)),
        lambda n: not layers(n)[0].disable_adapters,
    ),
    "delete_adapters": (
        loaded(("delete_adapters", "style")),
        lambda n: list(n.peft_config) == ["other"],
    ),
    "fuse_lora": (loaded(("fuse_lora", 0.5)), lambda n: all(m.merged for m in layers(n))),
    "unfuse_lora": (
        loaded(("fuse_lora",), ("unfuse_lora",)),
        lambda n: layers(n) and not any(m.merged for m in layers(n)),
    ),
    "unload_lora": (loaded(("unload_lora",)), lambda n: not layers(n)),
    "enable_lora_hotswap": (
        call("enable_lora_hotswap", target_rank=4),
        lambda n: n._prepare_lora_hotswap_kwargs["target_rank"] == 4,
    ),
    "enable_cache": (
        call("enable_cache", FirstBlockCacheConfig(threshold=1e9)),
        lambda n: n.is_cache_enabled,
    ),
    "disable_cache": (
        lambda m, _: (m.enable_cache(FirstBlockCacheConfig()), m.disable_cache()),
        lambda n: not n.is_cache_enabled,
    ),
    "enable_gradient_checkpointing": (
        call("enable_gradient_checkpointing"),
        lambda n: n.is_gradient_checkpointing,
    ),
    "disable_gradient_checkpointing": (
        lambda m, _: (m.enable_gradient_checkpointing(), m.disable_gradient_checkpointing()),
        lambda n: not n.is_gradient_checkpointing,
    ),
    "enable_layerwise_casting": (
        call("enable_layerwise_casting", torch.float8_e4m3fn, torch.float32),
        lambda n: any(p.dtype == torch.float8_e4m3fn for p in n.parameters()),
    ),
    "enable_group_offload": (
        call(
            "enable_group_offload",
            onload_device=torch.device("cpu"),
            offload_type="block_level",
            num_blocks_per_group=1,
        ),
        lambda n: hasattr(n, "_diffusers_hook"),
    ),
    "compile_repeated_blocks": (
        call("compile_repeated_blocks", backend="eager"),
        lambda n: any(m._compiled_call_impl for m in n.modules()),
    ),
    "set_attention_backend": (
        call("set_attention_backend", "_native_math"),
        lambda n: backends(n) == {"_native_math"},
    ),
    "reset_attention_backend": (
        lambda m, _: (m.set_attention_backend("_native_math"), m.reset_attention_backend()),
        lambda n: backends(n) == {None},
    ),
    "set_attn_processor": (
        lambda m, _: m.set_attn_processor(m.attn_processors),
        lambda n: n.attn_processors,
    ),
    "fuse_qkv_projections": (
        call("fuse_qkv_projections"),
        lambda n: any(getattr(m, "fused_projections", False) for m in n.modules()),
    ),
    "unfuse_qkv_projections": (
        lambda m, _: (m.fuse_qkv_projections(), m.unfuse_qkv_projections()),
        lambda n: not any(getattr(m, "fused_projections", False) for m in n.modules()),
    ),
}
"""What to call, and what is true of each network afterwards."""

RAISES = {
    "enable_parallelism": (ValueError, "transformer.networks"),
    "from_single_file": (ValueError, "QwenImageTransformer2DModel.from_single_file"),
    "dequantize": (ValueError, "quantiz"),
}
ATTENTION_KERNELS = {
    f"{verb}{kernel}"
    for kernel in (
        "xformers_memory_efficient_attention",
        "npu_flash_attention",
        "xla_flash_attention",
    )
    for verb in ("enable_", "disable_")
} | {
    "set_use_memory_efficient_attention_xformers",
    "set_use_npu_flash_attention",
    "set_use_xla_flash_attention",
}
WHOLE = {
    "config",
    "config_name",
    "device",
    "dtype",
    "from_config",
    "from_pretrained",
    "get_config_dict",
    "extract_init_dict",
    "get_memory_footprint",
    "has_compatibles",
    "ignore_for_config",
    "load_config",
    "num_parameters",
    "push_to_hub",
    "register_for_auto_class",
    "register_to_config",
    "save_config",
    "save_pretrained",
    "to_json_file",
    "to_json_string",
}
OF_ONE_CALL = {"cache_context", "is_cache_enabled", "is_gradient_checkpointing"}
OF_ONE_CALL |= {"attn_processors"}


def backends(network):
    return {
        m.processor._attention_backend
        for m in network.modules()
        if hasattr(getattr(m, "processor", None), "_attention_backend")
    }


@pytest.mark.parametrize("name", FULL)
def test_every_public_method_of_the_stock_class_is_listed(name):
    cls = getattr(diffusers, first(name).layout.network)
    public = {key for key in dir(cls) if not key.startswith("_")} - set(dir(nn.Module))
    listed = {*ON_EVERY_NETWORK, *RAISES, *ATTENTION_KERNELS, *WHOLE, *OF_ONE_CALL}
    own = {key for key in vars(cls) if not key.startswith("_")} - {"forward"}
    assert public - listed - own == set()
    for key in own & public:  # the class's own methods are called on each network
        kept = isinstance(inspect.getattr_static(cls, key), staticmethod)
        owner = next(c for c in type(built(name, False)).__mro__ if key in vars(c))
        assert kept or owner is not cls, key


@pytest.mark.parametrize("key", ON_EVERY_NETWORK)
def test_a_method_reaches_every_network(key, tmp_path):
    act, reached = ON_EVERY_NETWORK[key]
    name = "wan_2.1" if "qkv" in key else "qwen_image"
    model = phased(name)
    before = stock(model)
    act(model, tmp_path)
    assert all(reached(network) for network in model.networks)
    for network in before:
        act(network, tmp_path)
    if key not in ("compile_repeated_blocks", "enable_cache"):
        same(model, before, name)


@pytest.mark.parametrize("key", RAISES)
def test_what_several_networks_cannot_do_raises_an_error(key):
    error, words = RAISES[key]
    with pytest.raises(error, match=words):
        getattr(phased(), key)()


@pytest.mark.parametrize(
    "key",
    [
        "set_use_memory_efficient_attention_xformers",
        "set_use_npu_flash_attention",
        "set_use_xla_flash_attention",
    ],
)
def test_a_kernel_is_set_in_every_network(key):
    model, seen = phased(), []
    for i, network in enumerate(model.networks):
        for block in network.transformer_blocks:
            setattr(block.attn, key, lambda *_, i=i, **__: seen.append(i))
    getattr(model, key)(True)
    assert set(seen) == {0, 1}
