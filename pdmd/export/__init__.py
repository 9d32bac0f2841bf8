"""Export: a student as a pipeline folder of diffusers, or as adapter files."""

from pdmd.export.diffusers import export_diffusers
from pdmd.export.lora import export_lora
from pdmd.export.network_schedule import Stage, stages

__all__ = ["Stage", "export_diffusers", "export_lora", "stages"]
