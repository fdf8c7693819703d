"""Files become rows, rows become Conversations, one at a time: memory stays flat however large a file is.

data in: a path, a directory, a hub id, or several of them with weights → out: Conversations, each with its place.
Every error names the file and the line. No template, no tokens.
"""

import codecs
import csv
import functools
import gzip
import itertools
import os
import re
import shutil
import stat
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, TextIO, cast

from lorakeet.data import strict_json
from lorakeet.data.conversation import Conversation
from lorakeet.data.formats import Notes, Reasoning, RowReader, check_options, detect, fitting
from lorakeet.errors import DataError, MissingExtraError

MAX_ROW_BYTES = 16 * 1024 * 1024
_BOM = codecs.BOM_UTF8

STANDARD_INPUT = "-"
_SPACE = " \t\r\n"
_WRAPPED = re.compile(r'\{\s*"data"\s*:\s*\[(?=\s*[{\]])')
"""The beginning of an object whose first key is `data` and holds rows."""
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}
"""What may stand between the fields of a CSV file."""

Row = tuple[str, Any]
"""A place and what stands there; for a row that cannot be read, its DataError."""
Source = str | os.PathLike[str]
OnBadRow = Callable[[DataError], None]
"""Is called with the error of each row that cannot be used; if it raises nothing, the rows behind it follow."""


def stop_at_first(error: DataError) -> None:
    """Raise the error of the first row that cannot be used."""
    raise error


def read_conversations(
    source: Source | Sequence[Source] | Mapping[str, float],
    *,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    roles: Mapping[str, str] | None = None,
    merge_turns: bool = False,
    reasoning: Reasoning | None = None,
    notes: Notes | None = None,
    on_bad_row: OnBadRow = stop_at_first,
) -> Iterator[Conversation]:
    """Read every row of the given files, directories or hub datasets; "-" is JSONL from standard input.

    A mapping gives each source a weight, as does a name that ends in @WEIGHT: 2 reads every row twice, 0.5 every
    second row. `format` names the rows' shape instead of the keys of each file's first row; `columns` maps our keys
    to theirs, `roles` theirs to ours. `merge_turns` joins turns of one role that follow each other; `reasoning` says
    whether to keep or drop reasoning that stands in a field of its own.

    Raises DataError at the first row that is wrong, unless `on_bad_row` lets reading go on, and if there is no row at all.
    """
    check_options(format, roles, reasoning)
    notes = notes if notes is not None else Notes()
    make_reader = functools.partial(
        RowReader, columns=columns or {}, roles=roles or {}, notes=notes, merge_turns=merge_turns, reasoning=reasoning
    )
    weights = _weights(source)
    count = 0
    for name, weight in weights.items():
        for file in _files(name):
            reader: RowReader | None = None
            for index, (place, row) in enumerate(_entries(file, notes, unwraps="data" not in (columns or {}).values())):
                try:
                    if isinstance(row, DataError):
                        raise row
                    if reader is None:
                        kind = format or detect(row, place, columns)
                        reader = make_reader(kind, is_columnar=_is_columnar(file))
                        notes.formats[str(file)] = kind
                    conversation = reader.read(row, place)
                except DataError as error:
                    on_bad_row(error)
                    continue
                # Row i of weight w is read floor(w*(i+1)) - floor(w*i) times: exact, and needs no second pass.
                for _ in range(int(weight * (index + 1)) - int(weight * index)):
                    count += 1
                    yield conversation
    if not count:
        raise DataError("E-DATA-4", "0 conversations", place=", ".join(weights), fix="Name a file that holds rows")


def find_files(source: Source) -> list[Path | str]:
    """Return the data files that a source stands for; a hub id stays as it is. Raises DataError if there is none."""
    return [file for name in _weights(source) for file in _files(name)]


def _weights(source: Source | Sequence[Source] | Mapping[str, float]) -> dict[str, float]:
    """Set the weight of every source."""
    if isinstance(source, Mapping):
        pairs = [(str(name), float(weight)) for name, weight in source.items()]
    elif isinstance(source, str | os.PathLike):
        pairs = [_weighted(os.fspath(source))]
    else:
        pairs = [_weighted(os.fspath(name)) for name in source]
    weights: dict[str, float] = {}
    for name, weight in pairs:
        weights[name] = weights.get(name, 0.0) + weight  # a file named twice is read twice
    for name, weight in weights.items():
        if not 0 < weight <= 1000:
            raise DataError("E-DATA-116", f"weight {weight:g} is not in (0, 1000]", place=name, fix="Correct the weight")
    return weights


def _weighted(name: str) -> tuple[str, float]:
    """Split FILE@WEIGHT; a file that really has such a name is meant itself."""
    found = re.fullmatch(r"(.+)@(\d+(?:\.\d+)?)", name)
    return (found[1], float(found[2])) if found and not os.path.lexists(name) else (name, 1.0)


def _files(name: str) -> list[Path | str]:
    """Resolve a source into the data files it stands for; a hub id stays a string."""
    if name == STANDARD_INPUT:
        return [name]
    path = Path(name)
    if _kind_of(path) == "directory":
        try:
            names = sorted(os.listdir(path))
        except OSError as error:
            raise _unreadable(path, error) from None
        found = [path / n for n in names if _suffix(Path(n)) and not n.startswith(".") and _kind_of(path / n) == "file"]
        if not found:
            raise DataError(
                "E-DATA-2", "is a directory without data files; expected file", place=name, fix=f"Known types: {_TYPES}"
            )
        return [*found]
    if os.path.lexists(name):
        return [path]
    if _is_hub_id(name):
        return [name]
    raise DataError("E-DATA-1", "not found", place=name, fix="Correct the path")


def _kind_of(path: Path) -> str:
    """Tell file, directory, or anything else. Raises DataError if the system does not let us look."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return "absent"
    except OSError as error:  # no permission, a loop of links, a name too long
        raise _unreadable(path, error) from None
    return "file" if stat.S_ISREG(mode) else "directory" if stat.S_ISDIR(mode) else "other"


def _unreadable(path: Path, error: OSError) -> DataError:
    reason = error.strerror or str(error)
    return DataError("E-DATA-117", f"cannot be read: {reason}", place=str(path), fix="Check the path and its permissions")


def _is_hub_id(name: str) -> bool:
    """Tell owner/name, with or without :split, from a path that does not exist."""
    owner, slash, rest = name.partition("/")
    plain = all(part and not part.startswith((".", "~")) for part in (owner, rest))
    return bool(slash) and plain and "/" not in rest and "\\" not in name and not _suffix(Path(rest))


def _entries(file: Path | str, notes: Notes, *, unwraps: bool) -> Iterator[Row]:
    """Read the rows of one file; an error behind which the file cannot be read on comes as the last of them."""
    try:
        yield from _rows(file, notes, unwraps=unwraps)
    except DataError as error:
        yield error.place, error


def _rows(file: Path | str, notes: Notes, *, unwraps: bool) -> Iterator[Row]:
    """Read the rows of one file; with `unwraps`, an object that merely holds rows under "data" gives those."""
    rows = _plain_rows(file, notes, unwraps)
    return _unwrapped(rows, file, notes) if unwraps else rows


def _plain_rows(file: Path | str, notes: Notes, unwraps: bool) -> Iterator[Row]:
    """Read the rows of one file by the kind that its name shows."""
    if file == STANDARD_INPUT:
        return _jsonl_rows(_standard_input(), "<stdin>", notes)
    if isinstance(file, str):
        return _hub_rows(file)
    if _kind_of(file) != "file":
        raise DataError("E-DATA-3", "not a regular file", place=str(file), fix="Save the rows into a file")
    suffix = _suffix(file)
    if suffix is None:
        raise DataError("E-DATA-104", f'unknown file type "{file.suffix}"', place=str(file), fix=f"Known types: {_TYPES}")
    read = functools.partial(_json_rows, unwraps=True) if unwraps and suffix == ".json" else _READERS[suffix]
    return _guarded(read, file, notes)


def _suffix(path: Path) -> str | None:
    """Return the data type that the name shows, looking through a final .gz."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in _READERS else None


def _is_columnar(file: Path | str) -> bool:
    """Tell rows that were put together from columns: Parquet's, and all of the hub's library."""
    return file != STANDARD_INPUT if isinstance(file, str) else _suffix(file) == ".parquet"


@functools.cache
def _copy_of(standard_input: TextIO) -> IO[bytes]:
    """Copy standard input into a temporary file, since it can be read only once and rows are read several times."""
    copy = cast(IO[bytes], tempfile.TemporaryFile())  # noqa: SIM115  it lives as long as the process
    if not standard_input.isatty():
        shutil.copyfileobj(standard_input.buffer, copy)
    return copy


def _standard_input() -> IO[bytes]:
    """Open the rows of standard input. Raises DataError if nothing is piped in."""
    stream = _copy_of(sys.stdin)
    if not stream.seek(0, os.SEEK_END):
        raise DataError(
            "E-DATA-195",
            "standard input holds no rows",
            place=STANDARD_INPUT,
            fix="Pipe JSONL into the command; what is read again later, as by evaluate or --resume, must be in a file",
        )
    stream.seek(0)
    return stream


def _unwrapped(rows: Iterator[Row], file: Path | str, notes: Notes) -> Iterator[Row]:
    """Read the rows under "data" where that is what a file's objects hold; other rows pass as they are."""
    for place, row in rows:
        if not _is_wrapper(row):
            yield place, row
            continue
        _note_wrapper(notes, str(file), row.keys() - {"data"})
        for i, inner in enumerate(row["data"]):
            yield f"{place} data[{i}]", inner


def _is_wrapper(row: Any) -> bool:
    """Tell an object whose `data` is a list of rows, and that is no row itself."""
    if not isinstance(row, dict) or not isinstance(row.get("data"), list):
        return False
    return all(isinstance(item, dict) for item in row["data"]) and not fitting(row)


def _note_wrapper(notes: Notes, file: str, others: Iterable[str]) -> None:
    notes.add(f'rows under "data" accepted: {file}')
    for key in others:
        notes.add(f"key ignored beside data: {key}")


def _guarded(read: Callable[[IO[bytes], str, Notes], Iterator[Row]], file: Path, notes: Notes) -> Iterator[Row]:
    """Open a file, unpack it on the way if its name ends in .gz, and give reading errors their place."""
    place = str(file)
    try:
        with open(file, "rb") as raw:
            stream = cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if file.suffix.lower() == ".gz" else raw
            try:
                yield from read(stream, place, notes)
            except EOFError:
                raise DataError(
                    "E-DATA-5", f"gzip data ends early, at byte {raw.tell()}", place=place, fix="Copy the file again"
                ) from None
            except (zlib.error, gzip.BadGzipFile) as error:
                raise DataError(
                    "E-DATA-103", f"is not valid gzip near byte {raw.tell()}: {error}", place=place, fix="Copy it again"
                ) from None
    except OSError as error:
        raise _unreadable(file, error) from None


def _decode(data: bytes, offset: int, place: str) -> str:
    """Decode UTF-8; `offset` is where `data` stands in the file."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            "E-DATA-6", f"not UTF-8 at byte {offset + error.start}", place=place, fix="Save the file as UTF-8"
        ) from None
    if "\0" in text:
        raise DataError("E-DATA-8", "binary: the line holds a NUL byte", place=place, fix="Save the rows as text")
    return text


def _too_large(place: str) -> DataError:
    return DataError("E-DATA-17", "row exceeds 16 MiB", place=place, fix="Split the row")


def _jsonl_rows(stream: IO[bytes], place: str, notes: Notes) -> Iterator[Row]:
    """Read one JSON value a line; a file that is one array after all is read as such."""
    offset = 0
    number = 0
    while line := stream.readline(MAX_ROW_BYTES + 1):
        number += 1
        here = f"{place}:{number}"
        if len(line) > MAX_ROW_BYTES:
            raise _too_large(here)
        if number == 1:
            if line.startswith(_BOM):
                notes.add(f"byte-order mark accepted: {place}")
                line, offset = line[len(_BOM) :], len(_BOM)
            if line.lstrip()[:1] == b"[":
                notes.add(f"JSON array in a .jsonl file accepted: {place}")
                yield from _array_rows(_Window(stream, line, offset, place))
                return
        if number == 1 and line.strip() == b"{":
            raise DataError(
                "E-DATA-9", "JSON ends early: only {", place=here, fix="Write one row a line, or name the file .json"
            )
        start, offset = offset, offset + len(line)
        row: Any
        try:
            text = _decode(line, start, here)
            if not text.strip():
                continue
            row = strict_json.loads(text.rstrip("\r\n"), here)
        except DataError as error:
            row = error
        yield here, row


def _json_rows(stream: IO[bytes], place: str, notes: Notes, *, unwraps: bool = False) -> Iterator[Row]:
    """Read an array of rows, rows one after the other, or an array under "data", without ever holding more than one."""
    start = stream.read(len(_BOM))
    offset = 0
    if start == _BOM:
        notes.add(f"byte-order mark accepted: {place}")
        start, offset = b"", len(_BOM)
    window = _Window(stream, start, offset, place)
    if unwraps and window.skip(_SPACE) == "{" and (found := _WRAPPED.match(window.text, window.at)):
        return _wrapped_rows(window, found.end() - 1, notes)
    return _array_rows(window)


class _Window:
    """A stretch of a text stream that grows and moves on, and knows its line."""

    def __init__(self, stream: IO[bytes], start: bytes, offset: int, place: str) -> None:
        self.stream, self.place = stream, place
        self.text, self.at, self.line = "", 0, 1
        self.offset, self.pending = offset, start
        self.ended = False

    @property
    def here(self) -> str:
        return f"{self.place}:{self.line}"

    def grow(self, size: int) -> bool:
        """Read on; False if the stream has ended."""
        if self.ended:
            return False
        new = self.stream.read(size)
        self.ended = not new
        data = self.pending + new
        # A character cut by the border of two reads waits for its rest.
        cut = 0 if self.ended else _cut_character(data)
        self.pending = data[len(data) - cut :]
        data = data[: len(data) - cut]
        self.text = self.text[self.at :] + _decode(data, self.offset, self.here)
        self.at = 0
        self.offset += len(data)
        return True

    def skip(self, chars: str) -> str:
        """Move over any of `chars`; return the character after them, or "" at the end."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in chars:
                self.line += self.text[self.at] == "\n"
                self.at += 1
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.grow(1 << 16):
                return ""

    def value(self) -> Any:
        """Parse the JSON value that begins here, reading on until it is complete."""
        size = 1 << 16
        while True:
            try:
                value, end = strict_json.raw_decode(self.text, self.at, self.here, is_whole=self.ended)
            except strict_json.JsonEndsEarly:
                if len(self.text) - self.at > MAX_ROW_BYTES:
                    raise _too_large(self.here) from None
                if not self.grow(size):
                    raise strict_json.ends_early(self.here) from None
                size *= 2
                continue
            self.line += self.text.count("\n", self.at, end)
            self.at = end
            return value


def _cut_character(data: bytes) -> int:
    """Count the bytes at the end that begin a UTF-8 character without finishing it."""
    for back in range(1, min(4, len(data) + 1)):
        byte = data[-back]
        if byte >= 0xC0:
            return back if back < (2 if byte < 0xE0 else 3 if byte < 0xF0 else 4) else 0
        if byte < 0x80:
            return 0
    return 0


def _array_rows(window: _Window) -> Iterator[Row]:
    """Read the elements of one array, or values that merely follow each other."""
    if window.skip(_SPACE) == "[":
        yield from _elements(window)
        _expect_end(window, "array")
        return
    while window.skip(_SPACE):
        here = window.here
        yield here, window.value()


def _elements(window: _Window) -> Iterator[Row]:
    """Read the elements of the array that begins here, and move behind its end."""
    window.at += 1
    char = "," if window.skip(_SPACE) != "]" else "]"
    while char == ",":
        if not window.skip(_SPACE):
            raise strict_json.ends_early(window.here)
        here = window.here
        yield here, window.value()
        char = window.skip(_SPACE)
        window.at += char == ","
    if char != "]":
        raise _unexpected(window, "expected , or ] after a row")
    window.at += 1


def _wrapped_rows(window: _Window, start: int, notes: Notes) -> Iterator[Row]:
    """Read the rows under "data" of the object that begins here; `start` is where their array begins."""
    window.line += window.text.count("\n", window.at, start)
    window.at = start
    yield from _elements(window)
    others = []
    while window.skip(_SPACE) == ",":
        window.at += 1
        window.skip(_SPACE)
        others.append(str(window.value()))
        if window.skip(_SPACE) != ":" or others[-1] == "data":
            raise _unexpected(window, "expected one value for every key")
        window.at += 1
        window.skip(_SPACE)
        window.value()
    if window.skip(_SPACE) != "}":
        raise _unexpected(window, "expected , or } after the rows")
    window.at += 1
    _expect_end(window, "object")
    _note_wrapper(notes, window.place, others)


def _unexpected(window: _Window, message: str) -> DataError:
    if not window.skip(_SPACE):
        return strict_json.ends_early(window.here)
    return DataError("E-DATA-100", f"is not valid JSON: {message}", place=window.here, fix="Correct it")


def _expect_end(window: _Window, what: str) -> None:
    if window.skip(_SPACE):
        raise DataError("E-DATA-100", f"is not valid JSON: something follows the {what}", place=window.here, fix="Remove it")


def _csv_rows(stream: IO[bytes], place: str, notes: Notes) -> Iterator[Row]:
    """Read a CSV file with a header line."""
    lines = _csv_lines(stream, place, notes)
    first = next(lines, "")
    delimiter = _delimiter(first)
    if delimiter != ",":
        notes.add(f"{_DELIMITERS[delimiter]} between fields accepted: {place}")
    reader = csv.reader(itertools.chain([first] if first else [], lines), strict=True, delimiter=delimiter)
    csv.field_size_limit(MAX_ROW_BYTES)
    try:
        header = next(reader, None)
    except csv.Error as error:
        raise _csv_error(error, f"{place}:1") from None
    if header is None:
        return
    twice = [name for name in header if header.count(name) > 1]
    if twice:
        raise DataError("E-DATA-12", f'column "{twice[0]}" is repeated', place=f"{place}:1", fix="Rename one of them")
    while True:
        here = f"{place}:{reader.line_num + 1}"
        try:
            fields = next(reader, None)
        except csv.Error as error:
            yield here, _csv_error(error, here)
            continue
        if fields is None:
            return
        if fields:
            yield here, _csv_row(header, fields, here, delimiter)


def _csv_row(header: list[str], fields: list[str], here: str, delimiter: str) -> dict[str, str] | DataError:
    if len(fields) == len(header):
        return dict(zip(header, fields, strict=True))
    return DataError(
        "E-DATA-101",
        f"has {len(fields)} fields; the header has {len(header)}",
        place=here,
        fix=f"Quote fields that hold {_DELIMITERS[delimiter]} or line breaks",
    )


def _csv_error(error: csv.Error, here: str) -> DataError:
    if "field limit" in str(error):
        return _too_large(here)
    code, text = ("E-DATA-9", "CSV ends early") if "unexpected end" in str(error) else ("E-DATA-101", str(error))
    return DataError(code, text, place=here, fix="Correct the row")


def _delimiter(header: str) -> str:
    """Tell what stands between the names of a header line; only one without commas is looked at further."""
    if len(next(csv.reader([header]), [])) > 1:
        return ","
    try:
        return csv.Sniffer().sniff(header, delimiters=";\t").delimiter
    except csv.Error:
        return ","  # a single column


def _csv_lines(stream: IO[bytes], place: str, notes: Notes) -> Iterator[str]:
    offset = 0
    for number in range(1, 1 << 62):
        line = stream.readline(MAX_ROW_BYTES + 1)
        if not line:
            return
        if len(line) > MAX_ROW_BYTES:
            raise _too_large(f"{place}:{number}")
        if number == 1 and line.startswith(_BOM):
            notes.add(f"byte-order mark accepted: {place}")
            line, offset = line[len(_BOM) :], len(_BOM)
        text = _decode(line, offset, f"{place}:{number}")
        offset += len(line)
        yield text


def _parquet_rows(stream: IO[bytes], place: str, notes: Notes) -> Iterator[Row]:
    """Read a Parquet file batch by batch."""
    if not isinstance(stream, gzip.GzipFile):
        yield from _parquet_batches(stream, place)
        return
    # Parquet is read from its end, which a gzip stream cannot offer.
    with tempfile.TemporaryFile() as unpacked:
        shutil.copyfileobj(stream, unpacked)
        unpacked.seek(0)
        yield from _parquet_batches(cast(IO[bytes], unpacked), place)


def _parquet_batches(stream: IO[bytes], place: str) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtraError.of("pyarrow", "dev", "reading Parquet files") from None
    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(stream).iter_batches(batch_size=256):
            for row in batch.to_pylist():
                number += 1
                yield f"{place}:{number}", row
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        reason = " ".join(str(error).split())[:150]
        raise DataError(
            "E-DATA-102", f"is not valid Parquet: {reason}", place=f"{place}:{number + 1}", fix="Write the file again"
        ) from None


def _hub_rows(name: str) -> Iterator[Row]:
    """Stream a dataset of the Hugging Face hub; the only place that uses the network, and only for a named id."""
    import datasets

    repo, *parts = name.split(":")
    split = parts.pop() if parts else "train"
    try:
        rows: Iterable[Any] = datasets.load_dataset(repo, *parts[:1], split=split, streaming=True)
        for number, row in enumerate(rows, 1):
            yield f"{name}:{number}", row
    except Exception as error:  # the hub's client raises many kinds; each means the same to the user
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            "E-DATA-105",
            f"no such file, and the hub dataset cannot be read ({type(error).__name__}: {reason})",
            place=name,
            fix="Correct the path or the id: owner/name, owner/name:split, or owner/name:configuration:split",
        ) from None


_READERS: dict[str, Callable[[IO[bytes], str, Notes], Iterator[Row]]] = {
    ".jsonl": _jsonl_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".tsv": _csv_rows,
    ".parquet": _parquet_rows,
}
_TYPES = ", ".join(_READERS) + ", and .gz of them"
