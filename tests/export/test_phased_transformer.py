"""A transformer of phases computes, trains, saves and loads as its stock networks do."""

import contextlib
import fnmatch
import inspect
from functools import partial

import diffusers
import pytest
import torch
from diffusers import FirstBlockCacheConfig
from peft import LoraConfig

from pdmd.export.modules.phased_transformer import PhasedTransformer
from tests.helpers.phased_transformers import (
    FULL,
    TIMES,
    around,
    difference,
    inputs,
    load,
    outputs,
    phased,
    same,
    stock,
)


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


def test_guidance_over_a_guided_student_is_warned_of_once(recwarn):
    model = phased()
    with model.cache_context("cond"):
        outputs(model)
    assert not [w for w in recwarn if "guidance within" in str(w.message)]
    for _ in range(2):
        with model.cache_context("uncond"):  # as pipelines do for true_cfg_scale above 1
            outputs(model)
    (warning,) = [w for w in recwarn if "guidance within" in str(w.message)]
    assert "true_cfg_scale=1" in str(warning.message)


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
    saved, loaded = model.state_dict(), again.state_dict()
    assert saved.keys() == loaded.keys()
    assert all(torch.equal(loaded[name], value) for name, value in saved.items())
    # Loaded weights lie elsewhere in memory, for which some processors multiply otherwise.
    for own, other in zip(outputs(again), outputs(model), strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=1e-6)
    assert again.config["network_class"] == "QwenImageTransformer2DModel"
    assert isinstance(again, diffusers.QwenImageTransformer2DModel)
    assert (tmp_path / "phased_transformer.py").is_file()
    config = PhasedTransformer.load_config(tmp_path)
    assert isinstance(PhasedTransformer.from_config(config), PhasedTransformer)


class Saved(diffusers.DiffusionPipeline):
    """A pipeline of one transformer."""

    def __init__(self, transformer):
        super().__init__()
        self.register_modules(transformer=transformer)


@pytest.mark.parametrize(
    ("more", "pattern"),
    [
        ({"variant": "fp16", "max_shard_size": "100KB"}, "*.fp16-*-of-*.safetensors"),
        ({"safe_serialization": False}, "*.bin"),
    ],
)
def test_a_pipeline_saves_it_as_it_was_asked_to(more, pattern, tmp_path):
    model = phased()
    Saved(model).save_pretrained(tmp_path, **more)
    files = {path.name for path in (tmp_path / "transformer").iterdir()}
    weights = {name for name in files if name.endswith((".safetensors", ".bin"))}
    assert weights and weights == set(fnmatch.filter(files, pattern))
    again = PhasedTransformer.from_pretrained(
        tmp_path / "transformer", variant=more.get("variant"), torch_dtype=torch.float32
    )
    saved, loaded = model.state_dict(), again.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in saved.items())


def test_a_class_loads_after_another_export_was_loaded(tmp_path):
    from diffusers.utils.dynamic_modules_utils import get_class_from_dynamic_module

    phased().save_pretrained(tmp_path)
    known = inspect.signature(get_class_from_dynamic_module).parameters
    load_class = partial(
        get_class_from_dynamic_module,
        tmp_path,
        module_file="phased_transformer.py",
        class_name="PhasedTransformer",
        **dict.fromkeys({"trust_remote_code"} & known.keys(), True),  # from diffusers 0.38
    )
    first = load_class()
    model = first.from_pretrained(tmp_path)
    assert load_class() is not first
    again = type(model).from_pretrained(tmp_path)
    assert isinstance(again, first) and again.num_parameters() == model.num_parameters()


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
