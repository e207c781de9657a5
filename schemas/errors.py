"""The errors of actlake, grouped by what a handler would do about them.

Every error carries a ``code`` that never changes its meaning; codes are only ever appended.
The command line prints the message alone and exits with ``exit_code``.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "ActlakeError",
    "AlreadyExistsError",
    "BudgetSpentError",
    "CancelledError",
    "CloudError",
    "CorruptError",
    "IncompleteError",
    "InvalidInputError",
    "MissingDependencyError",
    "NotFoundError",
    "NotPulledError",
    "NumericalError",
    "StorageError",
]


class ActlakeError(Exception):
    """Any failure that actlake itself reports; the message says what to do about it."""

    code: ClassVar[str] = "AL000"
    exit_code: ClassVar[int] = 1


class NotFoundError(ActlakeError):
    """Something named by the caller does not exist: name another or create it."""

    code = "AL100"


class AlreadyExistsError(ActlakeError):
    """Something would be overwritten: choose another name, or resume with the same plan."""

    code = "AL200"


class InvalidInputError(ActlakeError):
    """The caller's input is wrong: mend it and call again. Nothing was changed."""

    code = "AL300"
    exit_code = 2


class IncompleteError(ActlakeError):
    """A run has rows that are not committed yet: resume it, or ask for a partial view."""

    code = "AL400"


class NotPulledError(IncompleteError):
    """A partial copy lacks what was asked for: pull it, or ask for what is there."""

    code = "AL410"


class CorruptError(ActlakeError):
    """Stored bytes are not what their manifest says: fetch or extract them again."""

    code = "AL500"


class StorageError(ActlakeError):
    """The storage refused or failed: check the URL, the credentials, the free space."""

    code = "AL600"


class MissingDependencyError(ActlakeError):
    """An optional dependency is not installed: install the extra that the message names."""

    code = "AL700"


class NumericalError(ActlakeError):
    """A model produced values that are not finite: use a wider dtype, or leave the text out."""

    code = "AL800"


class CancelledError(ActlakeError):
    """The caller stopped it: nothing is wrong; run it again to go on."""

    code = "AL900"
    exit_code = 130


class BudgetSpentError(ActlakeError):
    """The money or the time is spent: what was committed stays; a new budget goes on from there."""

    code = "AL910"
    exit_code = 3


class CloudError(ActlakeError):
    """A provider of machines refused or failed: look whether a machine still runs, and costs."""

    code = "AL920"
