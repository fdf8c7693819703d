"""Mutated files through every reader, into the encoder and the proof: a named error or rows, never anything else.

LORAKEET_FUZZ_COUNT is the number of files for all readers together; `make fuzz` asks for 20,000.
"""

import os
import random
import signal

import pytest

from lorakeet.data.encode import encode
from lorakeet.data.prove import prove
from lorakeet.data.read import read_conversations
from lorakeet.data.templates.template import template_for
from lorakeet.errors import LorakeetError
from tests.data.conftest import trained
from tests.fuzz.mutate import WRITERS, good_rows, spoiled_file

COUNT = int(os.environ.get("LORAKEET_FUZZ_COUNT", "1500"))
CPU_SECONDS = 10  # a loop without end is noticed by the time it computes, so that a busy machine raises no alarm
WALL_SECONDS = 300
PROOFS = {f"E-DATA-{number}" for number in range(130, 137)}


class Hangs(BaseException):
    """A file took too long; not an Exception, so that nothing swallows it."""


@pytest.fixture(autouse=True)
def _watch():
    def stop(*_):
        raise Hangs

    before = [signal.signal(number, stop) for number in (signal.SIGPROF, signal.SIGALRM)]
    yield
    _allow(0, 0)
    signal.signal(signal.SIGPROF, before[0])
    signal.signal(signal.SIGALRM, before[1])


def _allow(cpu_seconds: float, wall_seconds: float) -> None:
    """Set the time that a file may take; 0 is no limit."""
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
    signal.setitimer(signal.ITIMER_REAL, wall_seconds)


def run(path) -> str:
    """Read, encode and prove a file; return what became of it."""
    tokenizer = trained("bpe-chatml")
    template = template_for(tokenizer)
    _allow(CPU_SECONDS, WALL_SECONDS)
    try:
        for row in read_conversations(path):
            prove(row, encode(row, tokenizer, template), tokenizer, template)
        return "rows"
    except LorakeetError as error:
        refusal = error
    finally:
        _allow(0, 0)
    assert "\n" not in str(refusal)
    assert len(str(refusal)) < 2000
    assert refusal.code not in PROOFS, refusal  # no spoiled file may break the proof itself
    return refusal.code


@pytest.mark.parametrize("kind", WRITERS)
def test_mutated_files_end_in_rows_or_a_named_error(kind, tmp_path):
    seen: dict[str, int] = {}
    path = tmp_path / f"a.{kind}"
    for number in range(COUNT // len(WRITERS)):
        path.write_bytes(spoiled_file(kind, random.Random(f"{kind}/{number}")))
        outcome = run(path)
        seen[outcome] = seen.get(outcome, 0) + 1
    assert len(seen) >= 3, seen  # the mutations reach different ends
    assert sum(seen.values()) == COUNT // len(WRITERS)


@pytest.mark.parametrize("kind", WRITERS)
def test_good_files_pass(kind, tmp_path):
    path = tmp_path / f"a.{kind}"
    for number in range(30):
        path.write_bytes(WRITERS[kind](good_rows(random.Random(number))))
        assert run(path) == "rows"
