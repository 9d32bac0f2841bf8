"""A transformer of phases behaves as the stock class, on every network, or raises an error.

Every public method of the stock classes is listed here: those of a newer diffusers that are not
make a test fail.
"""

import contextlib
import copy
import functools
import inspect

import diffusers
import pytest
import torch
from diffusers import FirstBlockCacheConfig
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict
from torch import nn

from pdmd.export.modules.phased_transformer import PhasedTransformer
from tests.helpers.tiny_families import family
from tests.helpers.tiny_flows import flow

FILE = "pytorch_lora_weights.safetensors"
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
    )
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "phase_" in key:
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


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("name", FULL)
def test_a_loaded_adapter_acts_on_every_phase(name, adapted):
    model = phased(name, adapted)
    plain = outputs(model, name)
    load(model, name)
    styled = outputs(model, name)
    assert difference(plain, styled) > 1e-4
    if not adapted:
        networks = stock(phased(name, adapted))
        for network in networks:
            load(network, name)
        same(model, networks, name)
    model.set_adapters("style", 0.0)
    assert difference(outputs(model, name), plain) < 1e-5
    model.set_adapters("style", 1.0)
    model.fuse_lora()
    for a, b in zip(outputs(model, name), styled, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    model.unfuse_lora()
    model.unload_lora()
    for a, b in zip(outputs(model, name), plain, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_an_adapter_that_differs_by_network_is_not_saved_as_one(tmp_path):
    model = phased()
    config = LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False)
    model.add_adapter(config, "trained")
    with pytest.raises(ValueError, match="transformer.networks"):
        model.save_lora_adapter(tmp_path, "trained")


def test_a_cache_belongs_to_its_network_and_is_reset():
    model = phased()
    networks = stock(model)
    for each in (model, *networks):
        each.enable_cache(FirstBlockCacheConfig(threshold=1e9))
    for noisy in (1.0, 3.0):  # the second input receives what the cache has of the first
        with contextlib.ExitStack() as stack:
            for each in (model, *networks):
                stack.enter_context(each.cache_context("cond"))
            same(model, networks, noisy=noisy)
            cached = outputs(model, noisy=noisy)
    model._reset_stateful_cache()
    with model.cache_context("cond"):
        fresh = outputs(model, noisy=3.0)
    assert difference(fresh, cached) > 1e-3
    model.disable_cache()
    assert difference(fresh, outputs(model, noisy=3.0)) == 0.0


@pytest.mark.parametrize("adapted", [False, True])
def test_gradients_of_two_phases_are_exact_with_checkpointing(adapted):
    def gradients(model):
        teacher = around(model, "qwen_image")
        x, condition = inputs("qwen_image")
        model.train().requires_grad_(True)
        total = sum(
            teacher.network(x, torch.tensor([t]), condition).square().mean() for t in TIMES
        )
        total.backward()
        return {k: p.grad for k, p in model.named_parameters() if p.grad is not None}

    plain, checkpointed = phased(adapted=adapted), phased(adapted=adapted)
    checkpointed.enable_gradient_checkpointing()
    a, b = gradients(plain), gradients(checkpointed)
    assert a.keys() == b.keys() and len(a) > 50
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("adapted", [False, True])
def test_offloaded_weights_return_for_a_call(adapted):
    import accelerate

    model = phased(adapted=adapted)
    plain = outputs(model)
    accelerate.cpu_offload(model, torch.device("cpu"))
    assert all(p.is_meta for p in model.parameters())
    assert difference(outputs(model), plain) == 0.0


@pytest.mark.parametrize("more", [{}, {"low_cpu_mem_usage": False}, {"variant": "fp16"}])
@pytest.mark.parametrize("adapted", [False, True])
def test_a_saved_transformer_loads_again(adapted, more, tmp_path):
    model = phased(adapted=adapted)
    model.save_pretrained(tmp_path, **{k: v for k, v in more.items() if k == "variant"})
    if adapted and "low_cpu_mem_usage" in more:  # as stock classes with float32 parts do
        with pytest.raises(ValueError, match="low_cpu_mem_usage"):
            PhasedTransformer.from_pretrained(tmp_path, **more)
        return
    again = PhasedTransformer.from_pretrained(tmp_path, torch_dtype=torch.float32, **more)
    assert difference(outputs(again), outputs(model)) == 0.0
    assert again.config["network_class"] == "QwenImageTransformer2DModel"
    assert isinstance(again, diffusers.QwenImageTransformer2DModel)
    assert (tmp_path / "phased_transformer.py").is_file()
    config = PhasedTransformer.load_config(tmp_path)
    assert isinstance(PhasedTransformer.from_config(config), PhasedTransformer)


def test_a_transformer_with_loaded_adapters_is_not_saved(tmp_path):
    model = phased()
    load(model)
    with pytest.raises(ValueError, match="unload_lora_weights"):
        model.save_pretrained(tmp_path)


def test_phases_that_share_a_network_raise_where_their_additions_would_be_lost(tmp_path):
    model = phased(adapted=True)
    for key in ("enable_layerwise_casting", "fuse_qkv_projections"):
        with pytest.raises(ValueError, match="full networks"):
            getattr(model, key)()
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="quantization_config"):
        PhasedTransformer.from_pretrained(tmp_path, quantization_config=object())


def test_attributes_of_the_networks_are_set_on_all():
    model = phased()
    model.gradient_checkpointing = True
    assert [n.gradient_checkpointing for n in model.networks] == [True, True]


def test_weights_of_one_network_are_not_loaded_into_none():
    model = phased()
    with pytest.raises(ValueError, match=r"networks\.0\."):
        model.load_state_dict(model.networks[0].state_dict(), strict=False)


def test_sizes_count_every_network():
    model = phased()
    assert model.num_parameters() == 2 * model.networks[0].num_parameters()
    assert model.dtype == torch.float32
