"""The rows by which a run was measured, read again from where they lay when it was trained.

data in: a run directory, its configuration, tokenizer and template → out: the held-out conversations, if they are still
the ones that its checkpoints know. Rows of another file could be rows that the run was trained on.
"""

from pathlib import Path

from lorakeet.config import RunConfig
from lorakeet.data.conversation import Conversation
from lorakeet.data.prepare import prepare_held_out
from lorakeet.data.templates.template import Template
from lorakeet.data.tokenizer import Tokenizer
from lorakeet.errors import DataError
from lorakeet.rundir.checkpoint import recorded_identity
from lorakeet.rundir.identity import HELD_OUT, hash_of


def held_out_rows(
    run_directory: Path, config: RunConfig, tokenizer: Tokenizer, template: Template, longest: int
) -> list[Conversation]:
    """Return a run's held-out rows. Raises: DataError, E-DATA-30 if the data changed since training."""
    rows, examples = prepare_held_out(config, tokenizer, template, longest)
    found, recorded = hash_of(examples), recorded_identity(run_directory).get(HELD_OUT)
    if recorded not in (None, found):
        raise DataError("E-DATA-30", "the held-out rows changed since the run was trained", place=", ".join(config.data.train))
    return rows
