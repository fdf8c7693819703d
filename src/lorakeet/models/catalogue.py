"""The models that have a short name here: where they are on the hub, under which licence, how large, and what they take.

data in: shapes of published models and two measured figures → out: sizes and memory. Nothing is measured or fetched here.
"""

from dataclasses import dataclass

RANK = 16
MEASURED_MODEL, MEASURED_BYTES = "phi3-mini", 9.70e9
"""docs/benchmarks.md, Phi-3-mini at full size: 16 bits, 512 tokens a step."""
BYTES_OF_4_BITS, ADAPTER_BYTES = 0.516, 16
"""A weight in NF4 with double quantisation; a trained number with gradient and two moments."""


@dataclass(frozen=True)
class Shape:
    """What decides a model's size."""

    vocab: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    is_tied: bool = False
    head_dim: int = 0
    """Width of a head; 0 for hidden / heads."""

    @property
    def linears(self) -> list[tuple[int, int]]:
        """Inputs and outputs of a layer's four products."""
        width = self.head_dim or self.hidden // self.heads
        qkv, all_heads = width * (self.heads + 2 * self.kv_heads), width * self.heads
        return [
            (self.hidden, qkv),
            (all_heads, self.hidden),
            (self.hidden, 2 * self.intermediate),
            (self.intermediate, self.hidden),
        ]

    @property
    def num_linear(self) -> int:
        """Weights of the decoder's products: what is quantised, and what time goes into."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.linears)

    @property
    def num_others(self) -> int:
        """Weights of embeddings and head, which are not quantised."""
        return self.vocab * self.hidden * (1 if self.is_tied else 2)

    @property
    def num_params(self) -> int:
        """All weights but norms and biases, which are few."""
        return self.num_linear + self.num_others

    @property
    def num_adapter(self) -> int:
        """Trained numbers at rank 16 on all linear layers."""
        return self.layers * RANK * sum(inputs + outputs for inputs, outputs in self.linears)

    def bytes(self, per_linear_weight: float, per_weight: float = 2) -> float:
        """Return the size of the weights."""
        return self.num_linear * per_linear_weight + per_weight * self.num_others

    def training_bytes(self, per_linear_weight: float, per_weight: float = 2) -> float:
        """Return about what training takes at its peak: weights, adapters with their moments, and what a step keeps.

        per_weight: bytes of the type in which is computed; what a step keeps grows with it.
        """
        measured = MODELS[MEASURED_MODEL].shape
        kept = MEASURED_BYTES - measured.bytes(2) - ADAPTER_BYTES * measured.num_adapter
        kept *= self.layers * self.intermediate / (measured.layers * measured.intermediate) * per_weight / 2
        return self.bytes(per_linear_weight, per_weight) + ADAPTER_BYTES * self.num_adapter + kept


@dataclass(frozen=True)
class Model:
    """A model with a short name."""

    hub: str
    licence: str
    """As the hub names it."""
    shape: Shape


_PHI3_MINI = Shape(32064, 3072, 8192, 32, 32, 32)

MODELS: dict[str, Model] = {
    "phi3-mini": Model("microsoft/Phi-3-mini-4k-instruct", "mit", _PHI3_MINI),
    "phi3-mini-128k": Model("microsoft/Phi-3-mini-128k-instruct", "mit", _PHI3_MINI),
    "phi3.5-mini": Model("microsoft/Phi-3.5-mini-instruct", "mit", _PHI3_MINI),
    "phi3-medium": Model("microsoft/Phi-3-medium-4k-instruct", "mit", Shape(32064, 5120, 17920, 40, 40, 10)),
    "phi4": Model("microsoft/phi-4", "mit", Shape(100352, 5120, 17920, 40, 40, 10)),
    "phi4-mini": Model("microsoft/Phi-4-mini-instruct", "mit", Shape(200064, 3072, 8192, 32, 24, 8, True)),
    "llama3.2-1b": Model("meta-llama/Llama-3.2-1B-Instruct", "llama3.2", Shape(128256, 2048, 8192, 16, 32, 8, True)),
    "llama3.2-3b": Model("meta-llama/Llama-3.2-3B-Instruct", "llama3.2", Shape(128256, 3072, 8192, 28, 24, 8, True)),
    "llama3.1-8b": Model("meta-llama/Llama-3.1-8B-Instruct", "llama3.1", Shape(128256, 4096, 14336, 32, 32, 8)),
    "qwen2.5-0.5b": Model("Qwen/Qwen2.5-0.5B-Instruct", "apache-2.0", Shape(151936, 896, 4864, 24, 14, 2, True)),
    "qwen2.5-1.5b": Model("Qwen/Qwen2.5-1.5B-Instruct", "apache-2.0", Shape(151936, 1536, 8960, 28, 12, 2, True)),
    "qwen2.5-7b": Model("Qwen/Qwen2.5-7B-Instruct", "apache-2.0", Shape(152064, 3584, 18944, 28, 28, 4)),
    "qwen3-0.6b": Model("Qwen/Qwen3-0.6B", "apache-2.0", Shape(151936, 1024, 3072, 28, 16, 8, True, 128)),
    "qwen3-4b": Model("Qwen/Qwen3-4B", "apache-2.0", Shape(151936, 2560, 9728, 36, 32, 8, True, 128)),
    "gemma3-270m": Model("google/gemma-3-270m-it", "gemma", Shape(262144, 640, 2048, 18, 4, 1, True, 256)),
    "gemma3-1b": Model("google/gemma-3-1b-it", "gemma", Shape(262144, 1152, 6912, 26, 4, 1, True, 256)),
    "mistral-7b": Model("mistralai/Mistral-7B-Instruct-v0.3", "apache-2.0", Shape(32768, 4096, 14336, 32, 32, 8)),
    "smollm2-1.7b": Model("HuggingFaceTB/SmolLM2-1.7B-Instruct", "apache-2.0", Shape(49152, 2048, 8192, 24, 32, 32, True)),
}
