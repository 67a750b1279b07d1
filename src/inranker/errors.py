"""The errors a user can meet. Each is one line: what is wrong, where, and what to do."""

from __future__ import annotations

import importlib
from types import ModuleType


class InRankerError(Exception):
    """Base of every error this package raises on purpose; the command line prints it as one line, exit code 2."""


class InputError(InRankerError):
    """Something the user gave (a file, a setting, a name) is wrong."""

    @classmethod
    def at(cls, path: object, line: int | None, what: str) -> InputError:
        """An error that names the place in the input: `path:line: what`."""
        place = f"{path}:{line}" if line is not None else f"{path}"
        return cls(f"{place}: {what}")


class ModelError(InRankerError):
    """A model folder or file is missing, damaged, or not of the kind that was asked for."""


class MissingExtra(InRankerError):  # noqa: N818 (it is what it says)
    """A package of an optional extra is not installed."""


class InputWarning(UserWarning):
    """Something the user gave looks wrong but can be worked with; the command line prints it as one line."""


def require(module: str, extra: str) -> ModuleType:
    """Import `module`, or say which extra of this package brings it.

    Raises:
        MissingExtra: the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name.split(".")[0]):
            raise
        raise MissingExtra(f"{module} is not installed; from the checkout run: pip install '.[{extra}]'") from None
