"""Errors a person can act on: one line each, with a stable code, the place, what was found and the fix.

The tree is small, and every leaf is a ValueError so that library users can catch what they expect:

    LorakeetError
    ├── ConfigError        E-CFG-*    a configuration key, flag or argument
    ├── DataError          E-DATA-*   a file, row or field of the user's data
    ├── ModelError         E-MODEL-*  a model directory or one of its files
    ├── AdapterError       E-ADPT-*   an adapter directory or one of its files
    ├── CheckpointError    E-CKPT-*   a run directory or one of its checkpoints
    ├── ExportError        E-EXP-*    an artefact that cannot be written, or does not answer as the run does
    ├── TrainingError      E-TRAIN-*  training that must not go on (non-finite loss, no gradient)
    ├── ServerError        E-SRV-*    a request to the server, or how it is to be reached
    └── MissingExtraError  E-EXTRA-*  an optional package that is not installed

The number in a code never changes its meaning. The command line prints `str(error)` and exits with 2.
"""

import os
import re

from lorakeet.formatting import COMMAND

_SECRET_NAME = re.compile(r"(TOKEN|KEY|SECRET|PASSWORD|CREDENTIALS)$", re.IGNORECASE)
_SECRET_TEXT = re.compile(r"\bhf_[A-Za-z0-9]{16,}|(?<=://)[^/\s:@]*:[^/\s@]+(?=@)")
_SHORTEST_SECRET = 8


def redact(text: str) -> str:
    """Take secrets out of a text that is shown or kept: values of the environment, hub tokens, passwords in URLs."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST_SECRET and _SECRET_NAME.search(name):
            text = text.replace(value, f"[{name}]")
    return _SECRET_TEXT.sub("[secret]", text)


class LorakeetError(ValueError):
    """Return one line: what is wrong, where, and what to do about it."""

    family = ""
    """What stands between E- and the number in the codes of this kind."""

    def __init__(self, code: str, message: str, *, place: str = "", fix: str = "") -> None:
        self.code, self.place, self.message, self.fix = code, place, message.rstrip(". "), fix.rstrip(". ")
        super().__init__(code, message)

    def __str__(self) -> str:
        head = " ".join(part for part in (self.code, self.place, self.message) if part)
        text = " ".join(_ended(part) for part in (head, self.fix) if part)
        # Names and values quoted from files may hold line breaks; an error is always one line.
        return redact(" ".join(text.split()))

    def __reduce__(self) -> tuple:
        return _rebuild, (type(self), self.code, self.message, self.place, self.fix)


def _ended(sentence: str) -> str:
    """End a sentence with one mark; with none behind a command, which is copied as it stands."""
    return sentence if sentence.endswith(("?", "!", ".")) or COMMAND.search(sentence) else f"{sentence}."


def _rebuild(kind: type[LorakeetError], code: str, message: str, place: str, fix: str) -> LorakeetError:
    """Unpickle an error that crossed a process boundary."""
    return kind(code, message, place=place, fix=fix)


class ConfigError(LorakeetError):
    """A configuration key, flag or argument is wrong."""

    family = "CFG"


class DataError(LorakeetError):
    """A data file, row or field is wrong."""

    family = "DATA"


class ModelError(LorakeetError):
    """A model directory or one of its files is wrong."""

    family = "MODEL"


class AdapterError(LorakeetError):
    """An adapter directory or one of its files is wrong."""

    family = "ADPT"


class CheckpointError(LorakeetError):
    """A run directory or one of its checkpoints is wrong."""

    family = "CKPT"


class TrainingError(LorakeetError):
    """Training must not go on."""

    family = "TRAIN"


class ExportError(LorakeetError):
    """An artefact cannot hold the run, or does not answer as it does."""

    family = "EXP"


class ServerError(LorakeetError):
    """A request to the server cannot be answered, or the server must not be reached as asked."""

    family = "SRV"


class MissingExtraError(LorakeetError):
    """An optional package is not installed."""

    family = "EXTRA"

    @classmethod
    def of(cls, package: str, extra: str, needed_for: str) -> "MissingExtraError":
        """Name the extra that brings `package`."""
        return cls(
            "E-EXTRA-41", f"{needed_for} needs the package {package}", fix=f"Install it with: pip install 'lorakeet[{extra}]'"
        )
