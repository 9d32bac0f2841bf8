"""Teachers: the abstract class, guidance, and the ones that ship.

:func:`register` enters a class under a name for the command line, :func:`get` looks a name up and
:func:`names` lists them.
"""

from pdmd.teachers.base import Teacher
from pdmd.teachers.base import teachers as _registry
from pdmd.teachers.ddpm import DDPMTeacher
from pdmd.teachers.dit import DiTTeacher
from pdmd.teachers.flux import FluxTeacher
from pdmd.teachers.guided import Guided
from pdmd.teachers.image_prompts import ImagePrompt
from pdmd.teachers.ltx import LTXTeacher
from pdmd.teachers.mixture import MixtureTeacher
from pdmd.teachers.mlp import MlpDenoiser
from pdmd.teachers.prompts import PromptEmbeddings, Prompts
from pdmd.teachers.qwen_image import QwenImageTeacher
from pdmd.teachers.rebased import Rebased
from pdmd.teachers.routed import RoutedTeacher
from pdmd.teachers.sd3 import SD3Teacher
from pdmd.teachers.sdxl import SDXLTeacher
from pdmd.teachers.stable_diffusion import StableDiffusionTeacher
from pdmd.teachers.wan import WanTeacher
from pdmd.teachers.wan_image import WanImageTeacher
from pdmd.teachers.z_image import ZImageTeacher

__all__ = [
    "DDPMTeacher",
    "DiTTeacher",
    "FluxTeacher",
    "Guided",
    "ImagePrompt",
    "LTXTeacher",
    "MixtureTeacher",
    "MlpDenoiser",
    "PromptEmbeddings",
    "Prompts",
    "QwenImageTeacher",
    "Rebased",
    "RoutedTeacher",
    "SDXLTeacher",
    "StableDiffusionTeacher",
    "SD3Teacher",
    "Teacher",
    "WanImageTeacher",
    "WanTeacher",
    "ZImageTeacher",
    "get",
    "names",
    "register",
]

register, get, names = _registry.register, _registry.get, _registry.names
