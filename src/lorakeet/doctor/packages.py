"""Installed packages: what Lorakeet requires, what each extra is for, and consumers with known faults.

data in: the metadata of what is installed here → out: findings. Nothing is imported and no network is used.
"""

import importlib.util
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from lorakeet.doctor.finding import Finding
from lorakeet.models.registry import DEMO_INSTALL, DEMO_PACKAGE

EXTRAS = {
    "qlora": "training over a base of 4 or 8 bits",
    "optimizers": "8-bit, Lion and schedule-free optimizers",
    "eval": "ROUGE, BLEU and chrF in evaluations",
    "tasks": "tasks of lm-evaluation-harness in evaluations",
    "gguf": "reading and writing GGUF files",
    "demo": "the embedded model",
    "loggers": "TensorBoard, Weights & Biases, MLflow, trackio",
    "serve": "an OpenAI-compatible server",
    "chat": "line editing, history and Markdown in a chat",
    "llamacpp": "exports proven with llama.cpp",
}
"""What each extra is for, for those who use Lorakeet; extras for its developers are left out."""


@dataclass(frozen=True)
class KnownFault:
    """Versions of a program or package that do not take what Lorakeet writes, and what to do instead."""

    name: str
    versions: str
    """As pip writes them; empty for all."""
    what: str
    instead: str


CONSUMERS = (
    KnownFault(
        "ollama",
        ">=0.34.1",
        "`ollama create` refuses every ADAPTER line",
        "Give it a whole model: lorakeet export RUN --format ollama",
    ),
    KnownFault(
        "ollama",
        "<0.34.1",
        "safetensors adapters of Phi-3 are refused",
        "Give it a whole model: lorakeet export RUN --format ollama",
    ),
    KnownFault("vllm", "", "serves adapters up to rank 16 by default", "Start it with --max-lora-rank and your peft_config.r"),
    KnownFault(
        "transformers",
        "<5",
        "cannot read a tokenizer that transformers 5 has saved anew",
        "Use the tokenizer files in RUN/adapter, which are the base model's own",
    ),
)
"""Reported by their users or read in their sources in November 2026."""


def required() -> Iterator[Finding]:
    """Yield one finding for the packages that Lorakeet cannot do without."""
    wanted = requirements()
    if wanted is None:
        text = "lorakeet runs from its source folder and is not installed"
        yield Finding(
            "packages", "required", None, text, "note", "Install it, so that its packages can be checked: pip install -e ."
        )
        return
    problems = [problem for one in wanted.get("", []) if (problem := _problem(one))]
    text = "; ".join(problems) if problems else "all required packages are installed"
    fix = "Install them: pip install --upgrade lorakeet" if problems else ""
    yield Finding("packages", "required", problems, text, "problem" if problems else "ok", fix)


def extras() -> Iterator[Finding]:
    """Yield one finding for each extra: whether it is installed, what for, and how to install it."""
    wanted = requirements() or {}
    for name, purpose in EXTRAS.items():
        problems = [problem for one in wanted.get(name, []) if (problem := _problem(one))]
        if name == "demo" and importlib.util.find_spec(DEMO_PACKAGE) is None:
            problems.append(f"the weights are missing ({DEMO_INSTALL})")
        is_known = name in wanted
        value = not problems if is_known else None
        state = (
            f"pip install 'lorakeet[{name}]': " + ", ".join(problems)
            if problems
            else ("installed" if is_known else "not known to the installed version")
        )
        yield Finding("extras", name, value, f"{name} ({purpose}): {state}")


def consumers() -> Iterator[Finding]:
    """Yield every program or package here that is known to have trouble with what Lorakeet writes."""
    for fault in CONSUMERS:
        version = _installed(fault.name)
        if version is not None and SpecifierSet(fault.versions).contains(version, prereleases=True):
            text = f"{fault.name} {version}: {fault.what}"
            yield Finding("consumers", fault.name, version, text, "note", fault.instead)


def requirements() -> dict[str, list[Requirement]] | None:
    """Return what is wanted by extra, "" for what is always; None if Lorakeet is not installed, only on the path."""
    try:
        lines = metadata.requires("lorakeet") or []
    except metadata.PackageNotFoundError:
        return None
    found: dict[str, list[Requirement]] = {name: [] for name in metadata.metadata("lorakeet").get_all("Provides-Extra") or []}
    found[""] = []
    for one in map(Requirement, lines):
        always = one.marker is None or one.marker.evaluate({"extra": ""})
        for name in [""] if always else [name for name in found if one.marker and one.marker.evaluate({"extra": name})]:
            found[name].append(one)
    return found


def _problem(wanted: Requirement) -> str | None:
    try:
        version = metadata.version(wanted.name)
    except metadata.PackageNotFoundError:
        return f"{wanted.name} is missing"
    if wanted.specifier.contains(version, prereleases=True):
        return None
    return f"{wanted.name} is {version}, wanted {wanted.specifier}"


def _installed(name: str) -> str | None:
    """Return the version of a package, or of a program that says it itself; None if neither is here."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        program = shutil.which(name)
    if program is None:
        return None
    try:
        said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    number = re.search(r"\d+\.\d+(\.\d+)?", said.stdout + said.stderr)
    return number[0] if number else None
