"""All rows of a run, encoded, proven and fitted: in parallel for large data, and cached under a key of everything.

data in: Conversations, tokenizer, template, options → out: EncodedRows.
"""

import contextlib
import hashlib
import json
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorakeet.data.conversation import Conversation, Example
from lorakeet.data.encode import REWRITTEN, EncodeOptions, answer_by_answer, encode_many, fit_length
from lorakeet.data.prove import prove_many, prove_untruncated
from lorakeet.data.read import OnBadRow, stop_at_first
from lorakeet.data.templates.template import Template
from lorakeet.data.tokenizer import Tokenizer
from lorakeet.errors import DataError
from lorakeet.files.cache import is_whole, keep_newest, make_derived
from lorakeet.files.durable import write_file

if TYPE_CHECKING:
    import numpy

_CHUNK = 256
_MOST_CACHED = 32  # data sets; the oldest go
_FILE = "rows.safetensors"
_PARALLEL_FROM = 20_000  # rows; below, starting processes costs more than it saves


Result = list[Example | None] | DataError
"""What becomes of a row: one example, or one for each answer if the template writes earlier turns differently later on, each
None if it was dropped; or the error of a row that cannot be used."""


@dataclass(frozen=True)
class EncodedRows:
    """Proven examples and what happened on the way to them."""

    examples: list[Example]
    kept: list[int]
    """Index of each example's row; it occurs again if the row has an example for each answer."""
    num_rows: int
    num_truncated: int = 0
    """Examples that lost tokens at the left."""
    num_dropped: int = 0
    """Examples that the truncation policy dropped."""
    from_cache: bool = False

    @property
    def num_tokens(self) -> int:
        """All tokens."""
        return sum(len(example.input_ids) for example in self.examples)

    @property
    def num_supervised_tokens(self) -> int:
        """Tokens that are training targets."""
        return sum(example.num_supervised_tokens for example in self.examples)


@dataclass(frozen=True)
class _Job:
    """What every chunk needs; sent once to each process."""

    tokenizer: Tokenizer
    template: Template
    options: EncodeOptions

    def run(self, rows: Sequence[Conversation]) -> list[Result]:
        """Encode, prove and fit one chunk."""
        try:
            return [[example] for example in self._run(rows)]
        except DataError as error:
            # Together rows are faster, but only one by one does each have an error of its own.
            return [self._run_apart(rows[0], error)] if len(rows) == 1 else [self.run([row])[0] for row in rows]

    def _run_apart(self, row: Conversation, error: DataError) -> Result:
        """Encode a row that failed answer by answer, if that may help; else return its error."""
        if error.code != REWRITTEN or self.options.learn == "text":
            return error
        try:
            return self._run(answer_by_answer(row, self.options.learn))
        except DataError as other:
            return other

    def _run(self, rows: Sequence[Conversation]) -> list[Example | None]:
        examples = encode_many(rows, self.tokenizer, self.template, learn=self.options.learn)
        prove_many(rows, examples, self.tokenizer, self.template, learn=self.options.learn)
        return [self._fit(example) for example in examples]

    def _fit(self, example: Example) -> Example | None:
        max_length, truncation = self.options.max_length, self.options.truncation
        if max_length is None:
            return example
        fitted = fit_length(example, max_length, truncation, bos_id=self.tokenizer.bos_id)
        if fitted is not None and truncation != "truncate-left":
            prove_untruncated(example, fitted)
        return fitted


def encode_rows(
    rows: Sequence[Conversation],
    tokenizer: Tokenizer,
    template: Template,
    options: EncodeOptions = EncodeOptions(),  # noqa: B008  frozen
    *,
    cache_dir: Path | None = None,
    num_processes: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    on_bad_row: OnBadRow = stop_at_first,
) -> EncodedRows:
    """Encode, prove and fit all rows; on_progress is called with (rows done, rows in all).

    num_processes is chosen by the amount of data if it is None. Raises DataError at the first row that fails, unless
    `on_bad_row` lets the others follow, and if no row is left.
    """
    job = _Job(tokenizer, template, options)
    cached = None
    if cache_dir is not None:
        cached = Path(cache_dir) / cache_key(rows, tokenizer, template, options)
        if is_whole(cached):
            with contextlib.suppress(OSError):  # another process may just have made room for its own rows
                return _load(cached / _FILE, rows)
    if num_processes is None:
        num_processes = num_cores() if len(rows) >= _PARALLEL_FROM and _may_spawn() else 1
    results: list[Result] = []
    for chunk in _run_chunks(job, rows, num_processes):
        results += chunk
        for error in chunk:
            if isinstance(error, DataError):
                on_bad_row(error)
        if on_progress is not None:
            on_progress(len(results), len(rows))
    encoded = _collect(results)
    if not encoded.examples:
        place = rows[0].place if rows else ""
        raise DataError("E-DATA-28", f"0 of {len(rows)} usable: every row was dropped", place=place, fix="Raise --max-length")
    if cached is not None and not any(isinstance(result, DataError) for result in results):
        # A full or read-only disk costs the cache, never the run.
        with contextlib.suppress(OSError):
            make_derived(cached, lambda draft: _save(draft / _FILE, encoded, rows))
            keep_newest(cached.parent, _MOST_CACHED)
    return encoded


def num_cores() -> int:
    """Count the cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _may_spawn() -> bool:
    """Tell whether new processes can start without running somebody's script again.

    A spawned process imports the main module, and a script without a `__main__` guard would begin anew in it. Our own
    command has the guard; elsewhere the tokenizer's threads must do.
    """
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    return main is None or Path(main).stem == "lorakeet" or Path(main).parent.name == "lorakeet"


def _run_chunks(job: _Job, rows: Sequence[Conversation], num_processes: int) -> Iterator[list[Result]]:
    """Run the job over the rows, in order, a chunk at a time."""
    chunks = (rows[start : start + _CHUNK] for start in range(0, len(rows), _CHUNK))
    if num_processes <= 1:
        yield from map(job.run, chunks)
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    # spawn: the parent may hold torch's and the tokenizer's threads, which a fork would break.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_processes, context, initializer=_start_process, initargs=(job,)) as pool:
        try:
            waiting = deque(pool.submit(_run_in_process, chunk) for chunk in islice(chunks, 4 * num_processes))
            while waiting:
                yield waiting.popleft().result()
                waiting.extend(pool.submit(_run_in_process, chunk) for chunk in islice(chunks, 1))
        finally:
            pool.shutdown(cancel_futures=True)


_job: _Job | None = None  # of this worker process


def _start_process(job: _Job) -> None:
    global _job
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the parent ends them
    _job = job


def _run_in_process(rows: Sequence[Conversation]) -> list[Result]:
    assert _job is not None
    return _job.run(rows)


def _collect(results: Sequence[Result]) -> EncodedRows:
    found = [(i, one) for i, result in enumerate(results) if not isinstance(result, DataError) for one in result]
    examples = [one for _, one in found if one is not None]
    return EncodedRows(
        examples,
        [index for index, one in found if one is not None],
        num_rows=len(results),
        num_truncated=sum(example.num_cut > 0 for example in examples),
        num_dropped=len(found) - len(examples),
    )


def cache_key(rows: Sequence[Conversation], tokenizer: Tokenizer, template: Template, options: EncodeOptions) -> str:
    """Hash everything that decides the encoded rows: data, tokenizer, template, options and this package's code."""
    digest = hashlib.sha256()
    decisive = [tokenizer.fingerprint, template.fingerprint, *astuple(options), _code_hash()]
    digest.update(json.dumps(decisive).encode())
    for row in rows:
        said = [[m.role, m.content, m.train, m.tool_calls, m.name] for m in row.messages]
        text = json.dumps([said, row.tools, row.text, row.place])
        digest.update(f"{len(text)}:{text}".encode())
    return digest.hexdigest()


def _code_hash() -> str:
    """Hash the source of this package and the version of the library that tokenizes."""
    import tokenizers

    digest = hashlib.sha256(tokenizers.__version__.encode())
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _save(path: Path, encoded: EncodedRows, rows: Sequence[Conversation]) -> None:
    import numpy
    from safetensors.numpy import save

    def flat(values: list[Any]) -> "numpy.ndarray":
        return numpy.array(values, dtype=numpy.int64)

    examples = encoded.examples
    wheres = [one.place[len(rows[index].place) :] for index, one in zip(encoded.kept, examples, strict=True)]
    arrays = {
        "input_ids": flat([i for example in examples for i in example.input_ids]),
        "lengths": flat([len(example.input_ids) for example in examples]),
        "spans": flat([border for example in examples for span in example.spans for border in span]),
        "num_spans": flat([len(example.spans) for example in examples]),
        "num_cut": flat([example.num_cut for example in examples]),
        "kept": flat(encoded.kept),
        "num_dropped": flat([encoded.num_dropped]),
        "wheres": numpy.frombuffer("\n".join(wheres).encode(), numpy.uint8),  # what a place adds to its row's
    }
    write_file(path, save(arrays))


def _load(path: Path, rows: Sequence[Conversation]) -> EncodedRows:
    import numpy
    from safetensors.numpy import load_file

    arrays = load_file(path)
    ends = numpy.cumsum(arrays["lengths"]).tolist()
    span_ends = numpy.cumsum(arrays["num_spans"]).tolist()
    ids, spans = arrays["input_ids"].tolist(), arrays["spans"].reshape(-1, 2).tolist()
    examples: list[Example] = []
    kept = arrays["kept"].tolist()
    wheres = arrays["wheres"].tobytes().decode().split("\n")
    start = first = 0
    for index, where, end, last, cut in zip(kept, wheres, ends, span_ends, arrays["num_cut"].tolist(), strict=True):
        borders = tuple((a, b) for a, b in spans[first:last])
        examples.append(Example(ids[start:end], borders, rows[index].place + where, cut))
        start, first = end, last
    return EncodedRows(
        examples,
        kept,
        num_rows=len(rows),
        num_truncated=sum(example.num_cut > 0 for example in examples),
        num_dropped=int(arrays["num_dropped"][0]),
        from_cache=True,
    )
