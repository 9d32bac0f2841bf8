"""Keys of a configuration by other names: former ones, and those of other training scripts."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence

__all__ = ["MEANINGS", "RENAMED", "check_options", "check_renamed", "proposals"]

RENAMED: Mapping[str, str] = {
    "network.width": "network.arguments.width",
    "network.depth": "network.arguments.depth",
    "objective.draws": "objective.timestep_samples",
    "train.anchored": "train.fake_updates_per_rollout",
    "train.clip": "train.max_grad_norm",
    "train.entries": "train.phase_inputs",
    "train.fake_lag": "train.fake_error_tolerance",
    "train.init": "train.initializer",
    "train.patience": "train.max_consecutive_skips",
    "train.ring_batches": "train.buffer_batches",
    "train.ring_folder": "train.buffer_folder",
    "train.ring_together": "train.buffer_chunk",
    "train.ring_uses": "train.buffer_uses",
    "train.share": "train.update_shares",
    "parallel.recompute": "parallel.activation_checkpointing",
    "parallel.silence": "parallel.heartbeat_timeout",
}
"""Former key paths and the present ones."""

_MEANINGS: Mapping[str, str] = {
    "train.lr": "learning_rate generator_lr student_lr base_lr expert_lr",
    "train.fake_lr": "critic_lr fake_learning_rate fake_score_lr guidance_lr discriminator_lr",
    "train.updates": "steps epochs iterations iters max_steps train_steps num_train_steps "
    "max_train_steps max_train_epochs num_epochs num_train_epochs num_iterations total_steps",
    "train.fake_updates": "ttur fake_steps critic_steps dfake_gen_update_ratio "
    "student_update_freq",
    "train.batch_size": "batch bs train_batch_size global_batch_size per_device_train_batch_size",
    "train.generator.warmup": "warmup_steps lr_warmup_steps num_warmup_steps warmup_ratio",
    "train.generator.lr_decay": "lr_scheduler lr_scheduler_type scheduler lr_schedule",
    "train.generator.betas": "adam_betas adam_beta1 adam_beta2 beta1 beta2",
    "train.generator.weight_decay": "adam_weight_decay wd",
    "train.adam_bits": "use_8bit_adam adam_8bit",
    "train.accumulate": "gradient_accumulation_steps accumulate_grad_batches grad_accum "
    "gradient_accumulation",
    "train.ema": "ema_decay ema_rate ema_beta ema_weight",
    "train.max_grad_norm": "grad_clip gradient_clip gradient_clip_val clip_grad clip_grad_norm "
    "grad_norm",
    "train.seed": "seed random_seed",
    "train.checkpoint_every": "save_steps save_every save_interval checkpointing_steps log_iters",
    "train.checkpoint_keep": "checkpoints_total_limit save_total_limit keep",
    "train.initializer": "init init_from resume_from_weights",
    "train.curriculum": "joint shared",
    "plan.phases": "num_phases n_phases experts num_experts nfe num_inference_steps "
    "sampling_steps",
    "plan.steps": "steps_per_phase num_steps student_steps steps",
    "plan.timesteps": "denoising_step_list timestep_list sigmas boundaries",
    "plan.shift": "timestep_shift flow_shift time_shift",
    "teacher.name": "teacher model model_name family",
    "teacher.arguments.folder": "model_path pretrained_model_name_or_path checkpoint_path "
    "model_id pretrained teacher_path weights folder",
    "teacher.arguments.prompts": "prompts prompt prompt_file prompts_file dataset dataset_name "
    "train_data_dir train_data data captions",
    "teacher.arguments.height": "resolution image_size img_size size height",
    "teacher.arguments.width": "resolution image_size img_size size width",
    "teacher.arguments.frames": "num_frames n_frames",
    "teacher.guidance": "cfg cfg_scale guidance_scale real_guidance_scale",
    "teacher.negative_prompt": "negative neg_prompt uncond_prompt",
    "teacher.plugins": "plugin imports custom_modules",
    "lora.rank": "rank lora_rank r use_lora",
    "lora.alpha": "lora_alpha",
    "lora.targets": "target_modules lora_target_modules",
    "parallel.dp_shard": "gpus num_gpus n_gpus devices num_devices world_size fsdp",
    "parallel.tp": "tensor_parallel tensor_parallel_size",
    "parallel.cp": "context_parallel sequence_parallel sp ulysses",
    "parallel.precision": "dtype mixed_precision bf16 fp16 amp",
    "parallel.activation_checkpointing": "gradient_checkpointing checkpointing remat recompute",
    "parallel.device": "device cuda cpu",
    "parallel.compile": "torch_compile",
    "objective.generator": "loss losses generator_loss objectives gan_weight",
    "objective.fake": "fake_loss critic_loss diffusion_loss",
    "parallel.offload": "cpu_offload offloading",
    "validation.every": "validation_steps validation_epochs eval_every eval_steps eval_interval",
    "validation.prompts": "validation_prompt eval_prompts sample_prompts",
    "tracking.trackers": "report_to wandb use_wandb logger tracker tensorboard",
    "tracking.project": "wandb_project project_name tracker_project_name",
    "evaluate.samples": "num_samples n_samples fid_samples",
    "evaluate.teacher_steps": "num_teacher_steps",
    "out": "output output_dir out_dir save_dir logdir log_dir run_dir",
}
MEANINGS: Mapping[str, tuple[str, ...]] = {
    word: tuple(path for path, words in _MEANINGS.items() if word in words.split())
    for words in _MEANINGS.values()
    for word in words.split()
}
"""Names of settings elsewhere, and the key paths here that mean the same."""

_OPTIONS: Mapping[str, tuple[str, ...]] = {
    word: ("n",) for word in "samples num_samples number count num_images".split()
}
"""Names of options of `pdmd sample`, which are no keys, elsewhere."""


def check_renamed(path: str) -> None:
    """Raises an error for a key path that was renamed.

    Raises:
        ValueError: With the new name.
    """
    if path in RENAMED:
        raise ValueError(f"{path!r} was renamed; use {RENAMED[path]!r}")


def proposals(path: str, known: Sequence[str]) -> tuple[str, ...]:
    """Returns the key paths that somebody may mean by an unknown one, the likeliest first.

    They mean the same, or else have the same name in another section, or else are spelled alike.
    Of several meanings, those in the section of the path are preferred.

    Args:
        path: The unknown key path.
        known: All key paths.
    """
    section, _, name = path.rpartition(".")
    meant = tuple(
        key
        for key in (*MEANINGS.get(name.lower(), ()), *_OPTIONS.get(name.lower(), ()))
        if re.sub(r"\.arguments\..*", ".arguments", key) in known
    )
    here = tuple(key for key in meant if section and key.startswith(f"{section}."))
    same = tuple(key for key in known if key.rpartition(".")[2] == name)
    inside = {key.rpartition(".")[2]: key for key in known if key.rpartition(".")[0] == section}
    near = difflib.get_close_matches(name, inside, n=1)
    spelled = (inside[near[0]],) if near else difflib.get_close_matches(path, known, n=1)
    return here or meant or same or tuple(spelled)


def check_options(words: Sequence[str], known: Sequence[str], listing: str) -> None:
    """Checks the options of a command line.

    Args:
        words: The words of the command line.
        known: The options that there are, as key paths.
        listing: The command line that lists them, for errors.

    Raises:
        ValueError: If an option was renamed or is unknown; says which one is meant.
    """
    for word in words:
        if not re.match(r"--[A-Za-z]", word):
            continue
        option = word.split("=")[0]
        path = option[2:].replace("-", "_")
        check_renamed(path)
        named = [path, path.removeprefix("no_"), re.sub(r"\.no_", ".", path)]
        if any(name in known for name in named) or re.search(r"\barguments\.", path):
            continue
        if path.startswith(("tyro_", "help")):
            continue
        found = [f"--{key.replace('_', '-')}" for key in proposals(path, known)]
        hint = f"did you mean {' or '.join(found)}? " if found else ""
        raise ValueError(f"unknown option {option}: {hint}'{listing}' lists the options")
