"""Export: students as diffusers pipelines, or as LoRA files."""

from pdmd.export.diffusers import export_diffusers
from pdmd.export.lora import export_lora
from pdmd.export.network_schedule import NetworkInterval, network_intervals

__all__ = ["NetworkInterval", "export_diffusers", "export_lora", "network_intervals"]
