"""Every export, whatever its format: write into a draft, prove it there, and only then put it in its place.

data in: a run, a format, a path → out: an artefact at that path, with a lorakeet.json that says what it was made of
and what was proven. What is at the path already is never touched. An artefact that fails its gate goes, unless forced.
"""

import dataclasses
import os
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lorakeet import progress
from lorakeet.errors import AdapterError, ConfigError, ExportError
from lorakeet.exports import gate
from lorakeet.exports.artefact import Format, Missing, Options, Source
from lorakeet.exports.drift import Drift, drift_of_base
from lorakeet.exports.probes import choose_probes
from lorakeet.files.durable import new_directory, sync_directory, writing
from lorakeet.files.hashing import file_sha256
from lorakeet.files.output import check_output
from lorakeet.formatting import size
from lorakeet.lora.adapter import BASE_HASH, WEIGHTS_FILE, adapter_extra
from lorakeet.machine.memory import free_bytes, keep_freed_memory
from lorakeet.rundir.provenance import RECORD, Provenance, find_provenance, write_record

NOTED_STRENGTH = 0.05
"""A change of the adapter's strength beyond this is worth a line, even if it is allowed."""
ROOM_BYTES = 500_000_000
"""Memory that a proof takes beside the model: the program, activations, logits."""


@dataclass(frozen=True)
class Exported:
    """What was written, and what was proven of it."""

    path: Path
    format: str
    dtype: str
    num_bytes: int
    parity: gate.Parity | None
    """None if nothing was proven; `unchecked` says why."""
    failures: tuple[str, ...]
    """Why the gate let it pass only by force."""
    unchecked: str
    """Why nothing was proven and what would help; "" if it was."""
    drift: Drift | None
    """How far the run's model over the 16-bit base is from the one that was trained, if that had a quantised base."""
    commands: tuple[str, ...]
    notes: tuple[str, ...]


def export(source: Source, form: Format, output: Path, options: Options | None = None, *, force: bool = False) -> Exported:
    """Write and prove one artefact; with `force` one that fails stays, and the result says what failed.

    Raises:
        ExportError: E-EXP-200 if the artefact does not answer as the run does, 202 and 203 for options and path.
        ConfigError: E-CFG-46 to 48 if `output` is taken or cannot be written.
        AdapterError: E-ADPT-64 if the adapter belongs to another base.
    """
    options = options or Options()
    keep_freed_memory()  # half of the time of merging is else the kernel's, which zeroes a tensor's pages anew each time
    _check(source, form, output, options)
    training = find_provenance(source.adapter)
    with writing(output), _draft(output, form) as draft:
        progress.report(f"writing {form.name}")
        written = form.write(source, draft, options)
        parity, unchecked = _prove(source, form, draft)
        failed = tuple(gate.failures(parity, written.limits)) if parity is not None else ()
        if failed and not force:
            raise ExportError(
                "E-EXP-200",
                f"{form.name} does not answer as the run does: {'; '.join(failed)}",
                place=str(output),
                fix=f"Nothing was left there. {_remedy(parity, written.dtype)}--force keeps it all the same",
            )
        commands = tuple(_at_place(command, output, form, draft) for command in written.commands)
        exported = Exported(
            path=output,
            format=form.name,
            dtype=written.dtype,
            num_bytes=sum(file.stat().st_size for file in _files(draft)),
            parity=parity,
            failures=failed,
            unchecked=unchecked,
            drift=drift_of_base(source) if parity is not None else None,
            commands=commands,
            notes=written.notes,
        )
        _write_record(source, exported, training, draft)
    return exported


def _remedy(parity: gate.Parity | None, dtype: str) -> str:
    """Name the way out if weights rounded to a few bits are all that can be the reason."""
    is_rounding = parity is not None and parity.ids_are_equal and not parity.missing_stops and dtype.startswith(("q4", "q5"))
    return f"{dtype} rounds too much of this model away: take q8_0, or --format gguf-adapter; " if is_rounding else ""


def _check(source: Source, form: Format, output: Path, options: Options) -> None:
    """Refuse what cannot come to a good end before anything is loaded."""
    if options.dtype is not None and options.dtype not in form.dtypes:
        known = f"Choose one of {', '.join(form.dtypes)}" if form.dtypes else "Leave --dtype out"
        raise ExportError("E-EXP-202", f'{form.name} has no weights of type "{options.dtype}"', place="--dtype", fix=known)
    if output.suffix == ".gguf" and form.suffix != ".gguf":
        raise ExportError("E-EXP-203", f"{form.name} is a directory", place=str(output), fix="Name it without .gguf")
    check_output(output)
    is_ours = _draft_of_file(output).is_dir()  # an export was killed between its two names
    for path in (output, *(() if is_ours else (record_beside(output),))) if _is_file(output, form) else ():
        if path.exists():
            raise ConfigError("E-CFG-48", "exists", place=str(path), fix="Choose another path with -o")
    hash_there = adapter_extra(source.adapter).get(BASE_HASH, source.base_hash)
    if hash_there != source.base_hash:
        raise AdapterError(
            "E-ADPT-64",
            f"the adapter belongs to the base {hash_there}; this base is {source.base_hash}",
            place=str(source.adapter),
            fix="Load the base model it was trained on",
        )


def _is_file(output: Path, form: Format) -> bool:
    return bool(form.suffix) and output.suffix == form.suffix


def _at_place(command: str, output: Path, form: Format, draft: Path) -> str:
    """Put the artefact's path into a command."""
    if _is_file(output, form):
        command = command.replace(f"{{path}}/{_files(draft)[0].name}", "{path}")
    return command.replace("{path}", shlex.quote(str(output)))


def record_beside(file: Path) -> Path:
    """Return where the record of an artefact lies that is a single file."""
    return file.with_suffix(f".{RECORD}")


def _draft_of_file(output: Path) -> Path:
    """Return the hidden directory in which a single file and its record are made."""
    return output.with_name(f".{output.name}.part")


@contextmanager
def _draft(output: Path, form: Format) -> Iterator[Path]:
    """Return a hidden directory that becomes `output`, or whose one file does, at the end of the block."""
    if not _is_file(output, form):
        with new_directory(output) as draft:
            yield draft
        return
    whole = _draft_of_file(output)
    shutil.rmtree(whole, ignore_errors=True)
    with new_directory(whole) as draft:
        yield draft
    (file,) = _files(whole)
    os.rename(whole / RECORD, record_beside(output))
    os.rename(file, output)
    whole.rmdir()
    sync_directory(output.parent)


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file() and path.name != RECORD)


def _lacking_memory(source: Source, draft: Path) -> str:
    """Say why nothing can be proven if the artefact or the live model does not fit into memory; "" if both do."""
    needed, free = max(source.num_bytes, sum(file.stat().st_size for file in _files(draft))) + ROOM_BYTES, free_bytes()
    if free is None or free >= needed:
        return ""
    return f"Not proven: loading the model takes {size(needed)} of memory, and {size(free)} are free."


def _prove(source: Source, form: Format, draft: Path) -> tuple[gate.Parity | None, str]:
    """Return what the gate found, or what is missing to ask it."""
    if said := _lacking_memory(source, draft):
        return None, said
    reader = form.read(source, draft)
    if isinstance(reader, Missing):
        said = f"Not proven: {reader.consumer} is not installed, so nobody has loaded this artefact. Install: {reader.install}"
        return None, said
    return gate.measure(source, reader, choose_probes(source)), ""


def _write_record(source: Source, exported: Exported, training: Provenance | None, draft: Path) -> None:
    """Write what an artefact was made of, what its files are and what was proven."""
    write_record(
        draft,
        format=exported.format,
        dtype=exported.dtype,
        base={"name": source.base_name, "sha256": source.base_hash},
        adapter={"name": source.name, "sha256": file_sha256(source.adapter / WEIGHTS_FILE)},
        template=source.template.name,
        training=None if training is None else training.without_paths(),
        parity=dataclasses.asdict(exported.parity) if exported.parity is not None else None,
        drift=dataclasses.asdict(exported.drift) if exported.drift is not None else None,
        failures=exported.failures,
        unchecked=exported.unchecked,
        commands=exported.commands,
        notes=exported.notes,
    )


def describe(exported: Exported) -> list[str]:
    """Return what was written and proven, a line each."""
    lines = [f"{exported.format} in {exported.dtype}, {size(exported.num_bytes)}: {exported.path}"]
    parity = exported.parity
    if parity is not None:
        strength = "" if parity.strength is None else f", adapter's strength {parity.strength:.3f}"
        lines += [
            f"Parity with the live model, loaded by {parity.consumer} ({parity.seconds:.1f} s):",
            f"  prompt ids equal {parity.num_equal_ids}/{parity.num_probes} ({parity.num_rows} held-out rows)",
            f"  top-1 agreement {parity.top1:.2%} of {parity.num_positions} positions, "
            f"KL {parity.mean_kl:.2g} nats on average, {parity.max_kl:.2g} at most",
            f"  greedy agreement {parity.greedy:.1%} over {gate.LONG} tokens{strength}",
        ]
        if (
            parity.strength is not None
            and exported.dtype not in ("float32", "f32")
            and abs(parity.strength - 1) > NOTED_STRENGTH
        ):
            lines.append(f"  rounding the weights to {exported.dtype} changes the adapter's strength; float32 keeps it")
        lines += [f"  {limit}" for limit in parity.limits]
        if parity.num_unsayable:
            lines.append(
                f"  {parity.num_unsayable} rows left out: their text names control tokens, which others read as tokens"
            )
    lines += [exported.unchecked] if exported.unchecked else []
    if exported.drift is not None:
        lines.append(
            f"Trained over a quantised base, exported over the 16-bit one: their next-token distributions differ by "
            f"{exported.drift.mean_kl:.4f} nats on average, {exported.drift.max_kl:.4f} at most."
        )
    lines += [f"FAILED, kept by force: {failure}." for failure in exported.failures]
    lines += [f"Note: {note}" for note in exported.notes]
    return lines + [f"Use it: {command}" for command in exported.commands]
