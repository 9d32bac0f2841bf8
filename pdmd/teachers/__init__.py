"""Teachers: the abstract class, guidance, and the ones that ship."""

from pdmd.teachers.base import Teacher, teachers
from pdmd.teachers.guided import Guided
from pdmd.teachers.mixture import MixtureTeacher
from pdmd.teachers.mlp import MlpDenoiser

__all__ = ["Guided", "MixtureTeacher", "MlpDenoiser", "Teacher", "teachers"]
