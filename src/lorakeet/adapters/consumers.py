"""What the programs that load adapters will make of one.

data in: an AdapterFile → out: for each program, whether it takes the adapter, how, or why not. What is said here was
read in the programs' sources; docs/exporting.md has the whole table.
"""

from collections.abc import Iterable

from lorakeet.adapters.adapter_file import AdapterFile

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM allows as --max-lora-rank."""
_SHOWN = 3


def accepted_by(adapter: AdapterFile) -> dict[str, str]:
    """Return for every program whether and how it takes the adapter."""
    return {
        "PEFT": "yes, as it is",
        "vLLM": _by_vllm(adapter),
        "llama.cpp": _by_llama_cpp(adapter),
        "Ollama": "only merged: lorakeet export --format ollama; it converts no Phi-3 adapter",
        "transformers": "yes, as it is, through PEFT; without PEFT merged: lorakeet merge",
    }


def vllm_refusals(adapter: AdapterFile) -> list[str]:
    """Return what keeps vLLM from loading the adapter at all; empty if nothing does."""
    refusals = []
    if adapter.others:
        refusals.append(f"it takes neither saved modules nor biases ({some(adapter.others)})")
    if adapter.has_dora:
        refusals.append("it takes no DoRA")
    embeddings = [path for path, pair in adapter.pairs.items() if pair.is_embedding]
    if embeddings:
        refusals.append(f"its Phi-3 takes no update of {some(embeddings)}")
    if vllm_rank(adapter) is None:
        refusals.append(f"rank {most_rank(adapter)} is above {VLLM_RANKS[-1]}")
    return refusals


def vllm_rank(adapter: AdapterFile) -> int | None:
    """Return the smallest --max-lora-rank that vLLM allows and that holds the adapter; None if there is none."""
    return next((rank for rank in VLLM_RANKS if rank >= most_rank(adapter)), None)


def has_patterns(adapter: AdapterFile) -> bool:
    """Tell whether layers differ in rank or scale, of which vLLM and GGUF have only one for all."""
    return len({(pair.r, pair.scaling) for pair in adapter.pairs.values()}) > 1


def most_rank(adapter: AdapterFile) -> int:
    """Return the largest rank of a layer."""
    return max(pair.r for pair in adapter.pairs.values())


def some(names: Iterable[str]) -> str:
    """Name a few, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _by_vllm(adapter: AdapterFile) -> str:
    refusals = vllm_refusals(adapter)
    if refusals:
        return f"no: {'; '.join(refusals)}"
    if has_patterns(adapter):
        return "only through lorakeet export --format vllm: it silently ignores that layers differ in rank or alpha"
    return f"yes, with --max-lora-rank {vllm_rank(adapter)}"


def _by_llama_cpp(adapter: AdapterFile) -> str:
    if adapter.others:
        return f"no: a GGUF adapter holds neither saved modules nor biases ({some(adapter.others)})"
    if adapter.has_dora:
        return "only merged: lorakeet export --format gguf; a GGUF adapter holds no DoRA"
    return "through lorakeet export --format gguf-adapter"
