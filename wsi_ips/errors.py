"""One family of errors and the notes that travel with a slide.

    WsiIpsError
    |-- SlideError           a slide cannot be used; `code` is the reason written into predictions.csv
    |   |-- UnreadableSlideError   the file itself (also OSError)
    |   |-- MppError               its resolution (also ValueError)
    |   |-- TileReadError          pixels that could not be decoded (also OSError)
    |   `-- NoTissueError          nothing to look at: a result, not a failure
    |-- ManifestError        the list of slides (also ValueError); holds every problem found
    |-- ConfigError          settings or arguments (also ValueError)
    |-- ModelError           a bundle, weights or numbers of a model (also ValueError)
    `-- StoppedError         the environment gave out: disk full, output folder gone (also OSError)

Foreign errors are translated at the border of the room that calls the foreign library. Codes start with `E_`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

__all__ = [
    "ConfigError",
    "ManifestError",
    "ModelError",
    "MppError",
    "NoTissueError",
    "Note",
    "SlideError",
    "StoppedError",
    "TileReadError",
    "UnreadableSlideError",
    "WsiIpsError",
    "exit_status",
    "printable",
]


def printable(text: str) -> str:
    """Show foreign text, the name of a file for instance: what a terminal would act on becomes `?`.

    >>> printable("a" + chr(27) + "[31m" + chr(10) + ".svs")
    'a?[31m?.svs'
    """
    return "".join(c if c.isprintable() else "?" for c in text)


class Note(NamedTuple):
    """Something a reader of the results must know; makes a slide `ok_with_warnings`."""

    code: str  # "E_MISSING_PIXELS"
    message: str  # one sentence for a person


class WsiIpsError(Exception):
    """Base of every error this package raises on purpose."""


class SlideError(WsiIpsError):
    """A slide that cannot be used; the batch goes on without it.

    Args:
        code: the reason for predictions.csv, `E_TRUNCATED` for instance.
        message: what happened, where, with which numbers, and the cure; made printable.
    """

    def __init__(self, code: str, message: str) -> None:
        message = printable(message)
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class UnreadableSlideError(SlideError, OSError):
    """The file is missing, empty, broken, absurd, or of a kind that is refused."""

    __str__ = SlideError.__str__


class MppError(SlideError, ValueError):
    """No believable resolution (`E_MPP`), or coarser data than asked for (`E_UPSAMPLE`)."""


class TileReadError(SlideError, OSError):
    """Pixels of an open slide could not be decoded (`E_TILE`)."""

    __str__ = SlideError.__str__


class NoTissueError(SlideError):
    """The slide holds no tile to look at (`E_NO_TISSUE`, `E_NO_TILES`): status `no_tissue`."""


class ManifestError(WsiIpsError, ValueError):
    """Every problem of a manifest at once.

    Args:
        problems: one sentence each, with row and column.
    """

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class ConfigError(WsiIpsError, ValueError):
    """Settings or arguments that cannot be meant."""


class ModelError(WsiIpsError, ValueError):
    """A bundle or weights that cannot be used, or numbers that are not finite."""

    def __init__(self, message: str, code: str = "E_MODEL") -> None:
        super().__init__(message)
        self.code = code


class StoppedError(WsiIpsError, OSError):
    """The environment stopped the run; finished work is valid and a second start goes on."""


def exit_status(error: WsiIpsError) -> int:
    """Exit status of a program that ends with an error: 3 stopped by the environment, else 2 refused."""
    return 3 if isinstance(error, StoppedError) else 2
