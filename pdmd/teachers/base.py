"""Teachers: denoisers that can be distilled.

A new teacher is about twenty lines: its schedule and kind in the constructor, its network, and
how prompts become conditions.
"""

from __future__ import annotations

import importlib
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from pdmd.denoisers import Denoiser
from pdmd.registry import Registry
from pdmd.typing import Condition

__all__ = ["Teacher", "import_plugins", "networks", "teachers"]


class Teacher(Denoiser):
    """A denoiser that knows its prompts.

    A subclass implements :meth:`~pdmd.denoisers.Denoiser.network` and :meth:`encode`.
    """

    @abstractmethod
    def encode(self, prompts: Sequence[Any]) -> Condition:
        """Turns prompts into a condition.

        Args:
            prompts: One prompt per sample, of whatever type the teacher takes (text, a class
                index); ``None`` stands for no prompt, which guidance needs.

        Returns:
            A TensorDict with batch size ``(len(prompts),)``, or ``None`` for a teacher that takes
            no conditions.

        Raises:
            ValueError: If a prompt is not one the teacher takes.
        """

    @property
    def prompts(self) -> Sequence[Any]:
        """The prompts a distillation draws from unless it is given others."""
        return [None]


teachers: Registry[Any] = Registry(
    "teacher",
    {
        "digits": "pdmd.teachers.digits:DigitsTeacher.from_package",
        "mixture": "pdmd.teachers.mixture:MixtureTeacher.random",
    },
)

networks: Registry[Any] = Registry("network", {"mlp": "pdmd.teachers.mlp:MlpDenoiser"})
"""Networks for students of teachers without weights. One is called with the teacher's
``schedule`` and with ``kind``, ``dim``, ``classes``, ``width`` and ``depth``."""


def import_plugins(modules: Sequence[str]) -> None:
    """Imports modules that register teachers of one's own.

    Args:
        modules: Names of Python modules.

    Raises:
        ValueError: If one cannot be imported.
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:  # whatever the module's own code raises
            raise ValueError(
                f"cannot import the plugin {module!r} ({error}); install it or put its folder on "
                "PYTHONPATH"
            ) from error
