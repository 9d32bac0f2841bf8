"""Checks of a pipeline's folder before anything in it is loaded.

A teacher is loaded from the pipeline of its family, in weights that are values: an editing
pipeline shares its network's class with the text-to-image one and differs in what it feeds it;
integers and 8-bit floats are codes whose scales lie elsewhere; a network with an unmerged adapter
has other names. All of these would load and be wrong. Pickled weights and Python files are code,
and none is run.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pdmd.distributed.weight_files import WeightFiles
from pdmd.documents import read_json
from pdmd.extras import require

__all__ = [
    "PICKLES",
    "UnusableWeights",
    "check_index",
    "check_modules",
    "check_stored_values",
    "check_tensor",
    "check_tensors",
    "check_values",
    "check_weights",
    "read_index",
    "stored_part",
    "variant_of",
    "weight_paths",
]

PIPELINES: Mapping[str, frozenset[str]] = {
    "ChromaTransformer2DModel": frozenset({"ChromaPipeline"}),
    "CogVideoXTransformer3DModel": frozenset({"CogVideoXPipeline"}),
    "CosmosTransformer3DModel": frozenset({"Cosmos2_5_PredictBasePipeline"}),
    "DiTTransformer2DModel": frozenset({"DiTPipeline"}),
    "Flux2Transformer2DModel": frozenset({"Flux2Pipeline", "Flux2KleinPipeline"}),
    "FluxTransformer2DModel": frozenset({"FluxPipeline"}),
    "HunyuanVideo15Transformer3DModel": frozenset({"HunyuanVideo15Pipeline"}),
    "Kandinsky5Transformer3DModel": frozenset({"Kandinsky5T2IPipeline", "Kandinsky5T2VPipeline"}),
    "LTX2VideoTransformer3DModel": frozenset({"LTX2Pipeline"}),
    "LTXVideoTransformer3DModel": frozenset({"LTXPipeline"}),
    "QwenImageTransformer2DModel": frozenset({"QwenImagePipeline", "QwenImageEditPlusPipeline"}),
    "SD3Transformer2DModel": frozenset({"StableDiffusion3Pipeline"}),
    "SanaTransformer2DModel": frozenset({"SanaPipeline"}),
    "UNet2DConditionModel": frozenset({"StableDiffusionPipeline", "StableDiffusionXLPipeline"}),
    "UNet2DModel": frozenset({"DDPMPipeline", "DDIMPipeline", "PNDMPipeline"}),
    "WanTransformer3DModel": frozenset({"WanPipeline", "WanImageToVideoPipeline"}),
    "ZImageTransformer2DModel": frozenset({"ZImagePipeline"}),
}
"""The pipelines from which a network of a class is read as this package's families read it."""


class UnusableWeights(ValueError):
    """A pipeline's weights are there and cannot be used as they are."""


VALUES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
COUNTS = (torch.int64, torch.bool)
"""Types of positions, counts and masks, in which no weights are quantised."""
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack")
LIBRARIES = ("diffusers", "transformers")
NEVER_LOADED = ("safety_checker",)


def read_index(folder: str | Path) -> dict[str, Any]:
    """Returns a pipeline's ``model_index.json``, empty if the folder has none.

    Args:
        folder: The pipeline's folder, or its hub name, of which the file is downloaded.

    Raises:
        ValueError: If it is damaged.
    """
    path = Path(folder) / "model_index.json"
    if not Path(folder).is_dir():
        require("diffusers", "huggingface_hub")
        from huggingface_hub import hf_hub_download

        try:
            path = Path(hf_hub_download(str(folder), path.name))
        except Exception:  # of many classes; loading the part that follows states the reason
            return {}
    if not path.is_file():
        return {}
    index = read_json(path)
    remedy = "download or save the folder again"
    if not isinstance(index, dict):
        raise ValueError(f"{path} is damaged (it is no object); {remedy}")
    for key, value in index.items():
        if key == "_class_name" and not (
            isinstance(value, str) or (isinstance(value, list) and value)
        ):
            raise ValueError(f"{path} is damaged ({key} = {value!r:.80}); {remedy}")
        pair = isinstance(value, list) and len(value) == 2
        if isinstance(value, list) and key != "_class_name" and not pair:
            raise ValueError(f"{path} is damaged ({key} = {value!r:.80} is no pair); {remedy}")
        names = value if isinstance(value, list) else []
        if not all(name is None or isinstance(name, str) for name in names):
            raise ValueError(f"{path} is damaged ({key} = {value!r:.80} is no class); {remedy}")
    return index


def check_index(folder: str | Path, network: str = "", pipeline: str = "") -> None:
    """Checks that a folder is a pipeline of a class that is read as such, and ships no code.

    Args:
        folder: The pipeline's folder or hub name; one without ``model_index.json`` passes.
        network: The class of a network that is read from it.
        pipeline: The class that it is read as, where that is known.

    Raises:
        ValueError: If it is of another class, or one of its parts is defined by a Python file.
    """
    index = read_index(folder)
    found = index.get("_class_name")
    wanted = frozenset({pipeline}) if pipeline else PIPELINES.get(network, frozenset())
    if isinstance(found, list):  # a pipeline that is defined by a file of the folder
        raise UnusableWeights(_code(folder, str(found[0])))
    if found is not None and wanted and found not in wanted:
        raise UnusableWeights(
            f"{folder} is a {found}, which calls its network differently from a "
            f"{' or '.join(sorted(wanted))}; give a pipeline of that class, or register a "
            f"teacher for {found}"
        )
    for part, value in index.items():
        if not isinstance(value, list) or not value or not isinstance(value[0], str):
            continue
        if (Path(folder) / part / f"{value[0]}.py").is_file():
            raise UnusableWeights(_code(folder, f"{part}/{value[0]}.py"))
        if part in NEVER_LOADED:
            continue
        if not re.fullmatch(r"\w+", value[0]) or (
            value[0] not in LIBRARIES and not _is_diffusers_module(value[0])
        ):
            raise UnusableWeights(
                f"{folder} takes its {part} from the package {value[0]!r:.60}; give a pipeline "
                f"whose parts are of {' and '.join(LIBRARIES)}"
            )


def check_weights(folder: str | Path, parts: Iterable[str]) -> None:
    """Checks that the weights of a pipeline's parts are safetensors.

    Args:
        folder: The pipeline's folder; a hub name passes, whose pickles are never downloaded.
        parts: Patterns of the parts' names.

    Raises:
        ValueError: If a part has pickled weights and no others.
    """
    for place in sorted({path for part in parts for path in Path(folder).glob(part)}):
        names = [path.name for path in place.iterdir()] if place.is_dir() else []
        pickled = sorted(name for name in names if name.endswith(PICKLES))
        if pickled and not any(name.endswith(".safetensors") for name in names):
            raise UnusableWeights(
                f"{place} has its weights in {pickled[0]}, a pickle, which could run code when "
                "read; convert them, where you trust them, by loading the part and "
                "save_pretrained(..., safe_serialization=True)"
            )


def check_values(folder: str | Path, config: Mapping[str, Any]) -> None:
    """Checks that a network's configuration tells of no quantisation.

    Raises:
        ValueError: If it does.
    """
    if config.get("quantization_config"):
        kind = config["quantization_config"]
        method = kind.get("quant_method", "unknown") if isinstance(kind, dict) else kind
        raise UnusableWeights(
            f"the network of {folder} is quantised ({method!s:.60}), and a teacher's weights are "
            "values; give the pipeline in float32, bfloat16 or float16"
        )


def check_tensor(place: str, path: str, tensor: Tensor, wanted: torch.dtype | None) -> None:
    """Checks that a tensor of a file is what a network takes it for.

    Args:
        place: The network's place, for the error.
        path: The tensor's name.
        tensor: The tensor.
        wanted: The type that it has in the network; ``None`` if the network has none of its name.

    Raises:
        UnusableWeights: If it is a quantised weight, or belongs to an adapter.
    """
    if re.search(r"(^|\.)(base_layer|lora_[AB]|lora_(up|down)|lora_magnitude_vector)\b", path):
        raise UnusableWeights(
            f"{place} has an adapter that is not merged ({path}); merge it (fuse_lora or "
            "merge_and_unload), unload it and save the pipeline again"
        )
    takes_values = wanted is None or wanted.is_floating_point
    scale = re.search(
        r"((?<!\blogit)_scale(_inv)?|scale_(weight|input)|absmax|quant_map|qzeros)$", path
    )
    if (takes_values and tensor.dtype not in VALUES) or (wanted is None and scale):
        raise UnusableWeights(
            f"{place} has quantised weights ({path} in "
            f"{str(tensor.dtype).removeprefix('torch.')}), and a teacher's are values; give the "
            "pipeline in float32, bfloat16 or float16"
        )


def check_tensors(
    place: str, forms: Mapping[str, Tensor], types: Mapping[str, torch.dtype] | None = None
) -> None:
    """Checks that the tensors of files are values, where they may have other names in the network.

    Args:
        place: The network's place, for the error.
        forms: The tensors by name, which may be on the meta device.
        types: The types that they have in the network, by name, as far as they are known.

    Raises:
        UnusableWeights: If one is a quantised weight, or belongs to an adapter.
    """
    for path, form in forms.items():
        counts = form.dtype if form.dtype in COUNTS else None
        check_tensor(place, path, form, (types or {}).get(path, counts))


def check_stored_values(
    folder: str | Path, part: str, stem: str, variant: str | None = None
) -> None:
    """Checks by the headers of a part's files that its weights are values.

    Args:
        folder: The pipeline's folder or hub name, of which only what is downloaded is checked.
        part: The part.
        stem: What its weights' files are called, such as ``model``.
        variant: The variant of the files.

    Raises:
        UnusableWeights: If a weight is quantised, or belongs to an adapter.
    """
    place = stored_part(folder, part)
    paths = weight_paths(place, stem, variant) if place else []
    WeightFiles(
        lambda: [path for path in paths if path.is_file()],
        lambda forms: check_tensors(f"{folder}/{part}", forms),
    ).open()


def stored_part(folder: str | Path, part: str) -> Path | None:
    """Returns where a part of a pipeline is on this disk; nothing is downloaded.

    Args:
        folder: The pipeline's folder, or its hub name.
        part: The part.

    Returns:
        Its place, which a folder may lack; ``None`` for a part of the hub whose configuration is
        not in the local cache.
    """
    if Path(folder).is_dir():
        return Path(folder) / part
    require("diffusers", "huggingface_hub")
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(str(folder), f"{part}/config.json")
    except ValueError:  # no hub name either; loading the part states the reason
        return None
    return Path(found).parent if isinstance(found, str) else None


def weight_paths(
    place: Path, stem: str, variant: str | None = None, *, shards_first: bool = False
) -> list[Path]:
    """Returns the safetensors files that a part is loaded from: one, or those of its index.

    Args:
        place: The part's folder.
        stem: What its weights' files are called, such as ``model``.
        variant: The variant of the files.
        shards_first: Whether an index comes before a single file, as it does in diffusers; in
            transformers it comes after.

    Raises:
        ValueError: If the index is damaged, or names files elsewhere.
    """
    end = f".{variant}" if variant else ""
    single = place / f"{stem}{end}.safetensors"
    index = place / f"{stem}.safetensors.index{end}.json"
    if not index.is_file() or (single.is_file() and not shards_first):
        return [single]
    content = read_json(index)
    files = content.get("weight_map") if isinstance(content, dict) else None
    names = set(files.values()) if isinstance(files, dict) else {""}
    wrong = [f for f in names if not isinstance(f, str) or f != Path(f).name or f in ("", "..")]
    if wrong:
        raise UnusableWeights(
            f"{index} names {wrong[0]!r:.80}, which is no file beside it; download or save the "
            "folder again"
        )
    return [place / name for name in sorted(names)]


def check_modules(network: Any) -> None:
    """Checks that a network has no adapters of PEFT in it.

    Raises:
        ValueError: If it has.
    """
    if not isinstance(network, nn.Module):
        return
    for path, module in network.named_modules():
        if type(module).__module__.partition(".")[0] == "peft":
            raise UnusableWeights(
                f"the {type(network).__name__} has an adapter that is not merged ({path}); merge "
                "it and unload it (pipeline.fuse_lora() and unload_lora_weights()), then make the "
                "teacher"
            )


def variant_of(folder: str | Path, part: str, stem: str) -> str | None:
    """Returns the variant that a part's weights are saved in, where they are in one alone.

    Args:
        folder: The pipeline's folder.
        part: The part.
        stem: What its weights' files are called, such as ``model``.

    Raises:
        ValueError: If there are several and none without.
    """
    place = Path(folder) / part
    plain = (place / f"{stem}.safetensors{end}" for end in ("", ".index.json"))
    if not place.is_dir() or any(path.is_file() for path in plain):
        return None
    if any(re.fullmatch(rf"{stem}-\d+-of-\d+\.safetensors", p.name) for p in place.iterdir()):
        return None
    shard = r"(?:-\d+-of-\d+)?"
    pattern = rf"{stem}(?:\.(\w+){shard}|-\d+-of-\d+\.(\w+))\.safetensors"
    names = [m for p in place.iterdir() if (m := re.fullmatch(pattern, p.name))]
    found = {m[1] or m[2] for m in names}
    if len(found) > 1:
        raise UnusableWeights(
            f"{place} has weights in the variants {', '.join(sorted(found))} and none without; "
            "remove all but one of them"
        )
    return next(iter(found), None)


def _is_diffusers_module(name: str) -> bool:
    """Returns whether a name is a module of diffusers' pipelines, such as ``stable_diffusion``."""
    import importlib.util

    try:
        return importlib.util.find_spec(f"diffusers.pipelines.{name}") is not None
    except (ImportError, ValueError):
        return False


def _code(folder: str | Path, file: str) -> str:
    return (
        f"{folder} comes with Python code ({file:.100}), which is not run; give a pipeline whose "
        "parts are of diffusers and transformers"
    )
