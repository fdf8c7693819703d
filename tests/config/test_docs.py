"""docs/training.md lists every key: those of ours, of the model card and the notebook, and all others of the field's.

The tables of the others are written from the tables in the source: python -m tests.config.test_docs
"""

import re
from pathlib import Path

import pytest

from lorakeet.config import DataConfig, LoraConfig, TrainingConfig
from lorakeet.config.foreign_keys import LORA_KEYS, TRAINING_KEYS, TRAINING_RENAMED
from tests.config.test_foreign_keys import MODEL_CARD_PEFT, MODEL_CARD_TRAINING, NOTEBOOK_PEFT, NOTEBOOK_TRAINING

PAGE = Path(__file__).parents[2] / "docs" / "training.md"
BLOCK = re.compile(r"(<!-- written from foreign_keys\.py -->\n).*?(<!-- end -->\n)", re.S)


def written_tables():
    """Return the tables of keys that are no fields here, as Markdown."""
    lines = []
    for title, keys in (("training_config", TRAINING_KEYS), ("peft_config", LORA_KEYS)):
        groups = {}
        for key, known in keys.items():
            groups.setdefault((known.instead, repr(known.harmless)), []).append(key)
        lines += [f"| `{title}` | Stops unless it is | Here |", "|---|---|---|"]
        for names in groups.values():
            known = keys[names[0]]
            only = "never stops" if known.harmless is None else ", ".join(f"`{value!r}`" for value in known.harmless)
            lines.append(f"| {', '.join(f'`{name}`' for name in names)} | {only} | {known.instead} |")
        lines.append("")
    names = ", ".join(f"`{theirs}` = `{ours}`" for theirs, ours in TRAINING_RENAMED.items())
    return "\n".join([*lines, f"Earlier names are read as today's: {names}."]) + "\n"


def rows_of(section):
    """Return the keys of the first column of the tables in a section, and of its text."""
    text = PAGE.read_text(encoding="utf-8").split(f"\n## {section}\n")[1].split("\n## ")[0]
    firsts = "\n".join(line.split(" | ")[0] for line in text.splitlines() if line.startswith("| `"))
    return text, set(re.findall(r"`(\w+)`", firsts))


@pytest.mark.parametrize("kind", [TrainingConfig, LoraConfig, DataConfig])
def test_every_key_of_ours_is_in_a_table(kind):
    assert kind.model_fields.keys() - rows_of("Configuration")[1] == set()


def test_every_key_of_the_model_card_and_the_notebook_is_in_a_table_with_its_value():
    text, keys = rows_of("The model card's and the notebook's dictionaries")
    assert keys == {*MODEL_CARD_TRAINING, *MODEL_CARD_PEFT, *NOTEBOOK_TRAINING, *NOTEBOOK_PEFT}
    rows = {line.split("`")[1]: [cell.strip() for cell in line.split(" | ")] for line in text.splitlines() if "| `" in line}
    for column, given in ((1, MODEL_CARD_TRAINING | MODEL_CARD_PEFT), (2, NOTEBOOK_TRAINING | NOTEBOOK_PEFT)):
        for key, cells in rows.items():
            shown = repr(given[key]).replace("'", "") if key in given else ""
            assert cells[column] == shown, key


def test_every_other_key_is_in_the_tables_written_from_the_source():
    assert BLOCK.search(PAGE.read_text(encoding="utf-8")).group(0).split("\n", 1)[1].startswith(written_tables())


if __name__ == "__main__":
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(BLOCK.sub(lambda found: found[1] + written_tables() + found[2], page), encoding="utf-8")
