"""An adapter of fused layers is the same adapter when cut for separate ones."""

import torch
from torch import Tensor

from lorakeet.adapters.adapter_file import Pair, read_adapter
from lorakeet.errors import ExportError
from lorakeet.exports import peft_split
from lorakeet.exports.artefact import Options, Source
from lorakeet.lora.adapter import save_adapter
from lorakeet.proofs.passes import largest_difference
from lorakeet.proofs.proof import TO_THE_BIT, Measured, NotChecked, Proof
from lorakeet.proofs.subject import Subject


def fused_is_split(subject: Subject) -> Measured | NotChecked:
    """Export the adapter for separate q, k, v and gate, up, and compare each part with its rows of the fused update."""
    chat, fused, parts = subject.chat_model, subject.scratch / "adapter-fused", subject.scratch / "adapter-split"
    save_adapter(subject.model, fused)
    parts.mkdir()
    source = Source(chat.directory, fused, chat.tokenizer, chat.template)
    try:
        peft_split.FORMAT.write(source, parts, Options())
    except ExportError as error:
        return NotChecked(f"Nothing to do: {error.message}")
    whole, cut = read_adapter(fused).pairs, read_adapter(parts).pairs
    differences = [
        difference
        for path, pair in whole.items()
        for name, B in _parts(subject, path, pair)
        for difference in _differences(cut[name], pair, B)
    ]
    return Measured(max(differences), 0.0, TO_THE_BIT)


def _parts(subject: Subject, path: str, pair: Pair) -> list[tuple[str, Tensor]]:
    """Return the rows that the decoder takes for q, k, v, gate and up, by the names of separate layers."""
    owner, _, name = path.rpartition(".")
    config = subject.model.config
    q, k = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    if name == "qkv_proj":
        cuts = {"q_proj": pair.B[:q], "k_proj": pair.B[q : q + k], "v_proj": pair.B[q + k :]}
    elif name == "gate_up_proj":
        gate, up = pair.B.chunk(2)
        cuts = {"gate_proj": gate, "up_proj": up}
    else:
        return [(path, pair.B)]
    return [(f"{owner}.{part}", rows) for part, rows in cuts.items()]


def _differences(part: Pair, whole: Pair, B: Tensor) -> list[float]:
    """Compare a part with the rows B of a whole update; a part has its scale in B, and may be filled up with zeros."""
    A, scaled, r = part.A.float(), part.B_scaled, whole.r
    return [
        largest_difference(A[:r], whole.A.float()),
        largest_difference(scaled[:, :r], B.float() * whole.scaling),
        largest_difference(scaled[:, r:], torch.zeros_like(scaled[:, r:])),
    ]


PROOF = Proof(
    name="fused = split",
    compares="The adapter cut for separate q, k, v and gate, up, and the rows that the fused layers take for them.",
    fix="Use the adapter as it is, with the fused base, and report it",
    measure=fused_is_split,
    is_quick=True,
)
