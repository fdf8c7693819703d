"""A run on the hub: the proven adapter or merged model, with a model card, as one repository.

data in: a run's Source, its card, owner/name → out: a repository, or with a dry run the folder that would be one. The
token comes from the environment or the hub's own login, never from a flag. A repository that holds files already is
left alone unless asked for, and one that others can read never gets what was to be private.
"""

import dataclasses
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorakeet.adapters.model_card import Card, adapter_card, is_hub_id, model_card
from lorakeet.errors import ExportError
from lorakeet.exports.artefact import Source
from lorakeet.exports.export import Exported, export
from lorakeet.exports.formats import find_format
from lorakeet.files.durable import write_file, writing
from lorakeet.formatting import count, size
from lorakeet.models.registry import DEMO_NAME

_IGNORED = (".gitattributes", "README.md")
"""Files that a repository may hold before its first push: the hub makes the first, its web page the second."""


@dataclass(frozen=True)
class Pushed:
    """What was pushed, or would have been."""

    repo_id: str
    url: str | None
    """Where it is; None for a dry run."""
    directory: Path | None
    """Where the folder of a dry run lies."""
    files: dict[str, int]
    """Sizes of the files, in bytes."""
    exported: Exported
    """What was proven of it."""


def push(
    source: Source,
    card: Card,
    repo_id: str,
    *,
    merged: bool = False,
    private: bool = False,
    update: bool = False,
    force: bool = False,
    dry_run: Path | None = None,
) -> Pushed:
    """Push an adapter, or a merged model; with `dry_run` write the folder there and ask nobody.

    Raises:
        ExportError: E-EXP-230 for a name, 231 without a token, 232 for what the hub refuses, 233 for a repository that
            holds files, 234 for one that is public, 237 for a base model that nobody else has; 200 for a failed proof.
    """
    _check(source, repo_id, merged)
    if dry_run is not None:
        exported = _write(source, card, dry_run, repo_id, merged=merged, force=force)
        return Pushed(repo_id, None, dry_run, _sizes(dry_run), exported)
    run = source.adapter.parent
    with writing(run), tempfile.TemporaryDirectory(prefix=".push-", dir=run) as scratch:
        with _asking_hub(repo_id) as api:
            _check_repository(api, repo_id, private=private, update=update)
        folder = Path(scratch) / "push"
        exported = _write(source, card, folder, repo_id, merged=merged, force=force)
        with _asking_hub(repo_id) as api:
            api.create_repo(repo_id, private=private, exist_ok=True)
            what = "merged model" if merged else "adapter"
            done = api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=f"Push {what} with lorakeet")
        return Pushed(repo_id, str(done.repo_url), None, _sizes(folder), exported)


def _check(source: Source, repo_id: str, merged: bool) -> None:
    """Refuse before anything is loaded what could not be used where it is pushed to."""
    if not is_hub_id(repo_id):
        raise ExportError("E-EXP-230", f'"{repo_id}" is no name on the hub', place="push", fix="Write OWNER/NAME")
    if not merged and not is_hub_id(source.base_name) and source.base_name != DEMO_NAME:
        raise ExportError(
            "E-EXP-237",
            f"the adapter's base model is a directory of this machine ({source.base_name}), which nobody else has",
            place="push",
            fix="Name its hub id with --base-model, or push the merged model with --merged",
        )


def _check_repository(api: Any, repo_id: str, *, private: bool, update: bool) -> None:
    """Look at what is there, before anything is loaded or written."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        there = api.model_info(repo_id)
    except RepositoryNotFoundError:
        return
    if private and not there.private:
        raise ExportError(
            "E-EXP-234",
            "is public, and --private was asked for",
            place=f"hub:{repo_id}",
            fix="Make it private on its page, or choose another name",
        )
    held = [file.rfilename for file in there.siblings or [] if file.rfilename not in _IGNORED]
    if held and not update:
        raise ExportError(
            "E-EXP-233",
            f"holds {len(held)} files already, such as {held[0]}",
            place=f"hub:{repo_id}",
            fix="Add a commit to it with --update, or choose another name",
        )


def _write(source: Source, card: Card, folder: Path, repo_id: str, *, merged: bool, force: bool) -> Exported:
    """Export, and put the card beside it."""
    exported = export(source, find_format("hf" if merged else "peft"), folder, force=force)
    card = dataclasses.replace(card, name=repo_id, base=source.base_name, proofs=_proofs(exported), hashes=_hashes(folder))
    if not merged:
        _name_base(folder, source.base_name)
    write_file(folder / "README.md", (model_card if merged else adapter_card)(card).encode())
    return exported


def _name_base(folder: Path, base_name: str) -> None:
    """Have the adapter name its base as others find it."""
    file = folder / "adapter_config.json"
    fields = json.loads(file.read_text(encoding="utf-8"))
    text = json.dumps({**fields, "base_model_name_or_path": base_name}, indent=2)
    write_file(file, (text + "\n").encode())


def _proofs(exported: Exported) -> tuple[str, ...]:
    """Return in sentences what was proven."""
    parity = exported.parity
    if parity is None:
        return (exported.unchecked,)
    return (
        f"Loaded by {parity.consumer}: prompt ids equal for {parity.num_equal_ids} of {parity.num_probes} conversations.",
        f"Most probable token equal at {parity.top1:.2%} of {parity.num_positions} positions; "
        f"KL divergence from the trained model {parity.mean_kl:.2g} nats on average, {parity.max_kl:.2g} at most.",
        f"Greedy answers agree for {parity.greedy:.1%} of their tokens.",
        *(f"FAILED: {failure}." for failure in exported.failures),
    )


def _hashes(folder: Path) -> dict[str, str]:
    """Return the hashes that the export has recorded: base model and weights."""
    record = json.loads((folder / "lorakeet.json").read_text(encoding="utf-8"))
    files = {name: entry["sha256"] for name, entry in record["files"].items() if name.endswith(".safetensors")}
    return {"weights of the base model": record["base"]["sha256"], **files}


def _sizes(folder: Path) -> dict[str, int]:
    return {str(file.relative_to(folder)): file.stat().st_size for file in sorted(folder.rglob("*")) if file.is_file()}


@contextmanager
def _asking_hub(repo_id: str) -> Iterator[Any]:
    """Return the hub's client; what it complains about becomes one line."""
    from huggingface_hub import HfApi, errors, get_token

    # What the client's transport raises has a base whose package has changed its name; the client's errors inherit it.
    transport_error: type[Exception] = errors.HfHubHTTPError.__mro__[1]
    if get_token() is None:
        fix = "Set HF_TOKEN, or run: hf auth login"
        raise ExportError("E-EXP-231", "no token for the hub", place=f"hub:{repo_id}", fix=fix)
    try:
        yield HfApi(library_name="lorakeet")
    except errors.HfHubHTTPError as error:
        said = error.server_message or f"status {error.response.status_code}"
        fix = "Check the name, and that the token may write there"
        raise ExportError("E-EXP-232", f"the hub refuses: {said}", place=f"hub:{repo_id}", fix=fix) from None
    except (transport_error, OSError, RuntimeError) as error:  # the last if sending a file breaks off
        said = f"the hub cannot be reached ({type(error).__name__})"
        fix = "Check the connection, and HF_ENDPOINT and HF_HUB_OFFLINE if set"
        raise ExportError("E-EXP-232", said, place=f"hub:{repo_id}", fix=fix) from None


def describe(pushed: Pushed) -> list[str]:
    """Return what was pushed, a line each."""
    total = sum(pushed.files.values())
    where = pushed.url if pushed.url is not None else f"not pushed: {pushed.directory} is what would be"
    lines = [f"{pushed.repo_id}: {count(len(pushed.files), 'file')}, {size(total)}; {where}"]
    return [*lines, *(f"  {proof}" for proof in _proofs(pushed.exported))]
