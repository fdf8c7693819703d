"""Keys of TrainingArguments, SFTConfig and peft.LoraConfig that are no settings here, and what stands in their place.

One rule decides where a key of theirs goes:

- What we honour is a field of TrainingConfig or LoraConfig, and is not listed in foreign_keys.yaml.
- What has no meaning here, or no influence on the trained weights, is accepted with a note: `note`.
- What would change the trained weights, and cannot be honoured, stops the run: `refuse`; unless it is at one of the
  `harmless` values, which ask for nothing beyond what happens anyway (null and false if none are listed).

data in: one key and its value → out: a note, silence, or a ConfigError. docs/training.md lists the same keys; a test
holds both tables complete for the installed transformers, trl and peft.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lorakeet.errors import ConfigError


@dataclass(frozen=True)
class ForeignKey:
    """A key of theirs that is no field here."""

    instead: str
    """What stands in its place, as the end of a note or the fix of an error."""
    harmless: tuple[Any, ...] | None = None
    """Values that ask for nothing beyond what happens anyway; every other value stops. None: no value stops."""

    def accept(self, place: str, value: Any) -> str | None:
        """Return the note about a value of this key, or None if there is nothing to say.

        Raises: ConfigError E-CFG-108 if the value would change the trained weights.
        """
        if self.harmless is None:
            return f"{place} is not used: {self.instead}"
        # By type too: 0 and False, or 1 and True, are not the same request.
        if any(type(value) is type(known) and value == known for known in self.harmless):
            return None
        raise ConfigError("E-CFG-108", f"cannot be honoured as {_shown(value)}", place=place, fix=self.instead)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _keys(entries: list[dict[str, Any]]) -> dict[str, ForeignKey]:
    """Read a list of entries, each of which describes several keys at once."""
    found: dict[str, ForeignKey] = {}
    for entry in entries:
        if "note" in entry:
            known = ForeignKey(entry["note"])
        else:
            known = ForeignKey(entry["refuse"], tuple(entry.get("harmless", (None, False))))
        found |= dict.fromkeys(entry["keys"], known)
    return found


_TABLES = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))

TRAINING_KEYS = _keys(_TABLES["training"])
"""Keys of transformers.TrainingArguments and trl.SFTConfig, of this version and earlier ones."""

TRAINING_RENAMED: dict[str, str] = _TABLES["renamed"]
"""Earlier names of TrainingConfig's fields."""

LORA_KEYS = _keys(_TABLES["lora"])
"""Keys of peft.LoraConfig."""
