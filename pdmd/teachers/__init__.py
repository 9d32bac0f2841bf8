"""Teachers: the abstract class, its wrappers, and the model families.

:func:`register` registers a class by name for the command line and configurations, :func:`get`
returns a registered class, and :func:`names` lists the names.
"""

from pdmd.teachers.base import Teacher
from pdmd.teachers.base import teachers as _registry
from pdmd.teachers.conditioning.image_prompts import ImagePrompt
from pdmd.teachers.conditioning.prompts import PromptEmbeddings, Prompts
from pdmd.teachers.families.chroma import ChromaTeacher
from pdmd.teachers.families.cogvideox import CogVideoXTeacher
from pdmd.teachers.families.cosmos_predict25 import CosmosPredict25Teacher
from pdmd.teachers.families.ddpm import DDPMTeacher
from pdmd.teachers.families.dit import DiTTeacher
from pdmd.teachers.families.edm import EDMTeacher
from pdmd.teachers.families.flux import FluxTeacher
from pdmd.teachers.families.flux2 import Flux2KleinTeacher, Flux2Teacher
from pdmd.teachers.families.hunyuan_video15 import HunyuanVideo15Teacher
from pdmd.teachers.families.kandinsky5 import Kandinsky5ImageTeacher, Kandinsky5Teacher
from pdmd.teachers.families.ltx import LTXTeacher
from pdmd.teachers.families.ltx2 import LTX2Teacher
from pdmd.teachers.families.qwen_image import QwenImageTeacher
from pdmd.teachers.families.qwen_image_edit import QwenImageEditTeacher
from pdmd.teachers.families.sana import SanaTeacher
from pdmd.teachers.families.sd3 import SD3Teacher
from pdmd.teachers.families.sdxl import SDXLTeacher
from pdmd.teachers.families.sit import SiTTeacher
from pdmd.teachers.families.stable_diffusion import StableDiffusionTeacher
from pdmd.teachers.families.wan import WanTeacher
from pdmd.teachers.families.wan_image import WanImageTeacher
from pdmd.teachers.families.z_image import ZImageTeacher
from pdmd.teachers.guided import Guided
from pdmd.teachers.mixture import MixtureTeacher
from pdmd.teachers.packaged.mlp import MlpDenoiser
from pdmd.teachers.routed import RoutedTeacher
from pdmd.teachers.with_schedule import WithSchedule

__all__ = [
    "ChromaTeacher",
    "CogVideoXTeacher",
    "CosmosPredict25Teacher",
    "DDPMTeacher",
    "DiTTeacher",
    "EDMTeacher",
    "Flux2KleinTeacher",
    "Flux2Teacher",
    "FluxTeacher",
    "Guided",
    "HunyuanVideo15Teacher",
    "ImagePrompt",
    "Kandinsky5ImageTeacher",
    "Kandinsky5Teacher",
    "LTX2Teacher",
    "LTXTeacher",
    "MixtureTeacher",
    "MlpDenoiser",
    "PromptEmbeddings",
    "Prompts",
    "QwenImageEditTeacher",
    "QwenImageTeacher",
    "RoutedTeacher",
    "SDXLTeacher",
    "SanaTeacher",
    "SiTTeacher",
    "StableDiffusionTeacher",
    "SD3Teacher",
    "Teacher",
    "WanImageTeacher",
    "WanTeacher",
    "WithSchedule",
    "ZImageTeacher",
    "get",
    "names",
    "register",
]

register, get, names = _registry.register, _registry.get, _registry.names
