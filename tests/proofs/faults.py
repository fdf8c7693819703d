"""The field's silent bugs, one for each proof, put into the real code by a patch at run time.

Each is a function that takes pytest's monkeypatch; FAULTS has them by the name of the one proof that must fail.
"""

from dataclasses import replace

from lorakeet.data import encode
from lorakeet.data.pack import _Stream
from lorakeet.exports import peft_split
from lorakeet.infer.engine import Engine
from lorakeet.infer.native_step import NativeStep
from lorakeet.lora import adapter, disable, inject
from lorakeet.lora.merging import MergeableLayer
from lorakeet.models import decoder, rotary
from lorakeet.ops import cross_entropy
from lorakeet.ops.attention import blockwise, cached
from lorakeet.proofs import compiled, two_processes
from lorakeet.quant import linear, nf4
from lorakeet.training import loop


def mask_shifted_by_one(patch):
    """Train on the token before each answer, and not on its last one."""
    true = encode._example

    def shifted(*arguments):
        example = true(*arguments)
        return replace(example, spans=tuple((start - 1, end - 1) for start, end in example.spans))

    patch.setattr(encode, "_example", shifted)


def border_one_too_late(patch):
    """Count the first token of a document to the one before it."""
    true = _Stream.add

    def add(self, *arguments, **named):
        index = true(self, *arguments, **named)
        if len(self.borders) > 2 and max(self.parents) < 0:
            self.borders[-2] += 1
        return index

    patch.setattr(_Stream, "add", add)


def scale_of_the_whole_stream(patch):
    """Scale values by the mean of the stream: the same numbers, but for rounding that depends on the neighbours."""
    true = decoder.attention

    def attention(q, k, v, *rest):
        scale = v.detach().abs().mean()
        return true(q, k, v / scale, *rest) * scale

    patch.setattr(decoder, "attention", attention)


def position_after_a_shared_beginning(patch):
    """Begin one position too late behind a beginning that is shared."""
    true = _Stream.add

    def add(self, examples, start, end, parent):
        index = true(self, examples, start, end, parent)
        if parent >= 0:
            self.positions[start - end :] = range(start + 1, end + 1)
        return index

    patch.setattr(_Stream, "add", add)


def mean_of_means(patch):
    """Take the mean over micro-batches of their means."""
    true = loop.train_step

    def train_step(model, batches, *rest, objective=loop.packed_loss, **named):
        total = sum(batch.num_supervised_tokens for batch in batches)

        def mean(model, batch):
            return objective(model, batch) * total / (batch.num_supervised_tokens * len(batches))

        return true(model, batches, *rest, objective=mean, **named)

    patch.setattr(loop, "train_step", train_step)


def last_row_of_a_chunk(patch):
    """Lose the last row of a chunk that is full."""
    true = cross_entropy._chunk_loss_and_grad

    def chunk(logits, targets, smoothing):
        total, losses, grad = true(logits, targets, smoothing)
        if len(targets) == 5:
            grad[-1] = 0
            total = total - losses[-1]
        return total, losses, grad

    patch.setattr(cross_entropy, "_chunk_loss_and_grad", chunk)


def rounded_before_it_is_computed_again(patch):
    """Keep a layer's input in 16 bits for the second computation."""
    true = decoder.checkpoint

    def checkpoint(layer, x, *rest, **named):
        calls = []

        def once_rounded(x, *rest):
            calls.append(x)
            return layer(x if len(calls) == 1 else x.bfloat16().float(), *rest)

        return true(once_rounded, x, *rest, **named)

    patch.setattr(decoder, "checkpoint", checkpoint)


def compiler_makes_another_function(patch):
    """Let the compiled layer be a little off."""

    def compile_module(module):
        module._compiled_call_impl = lambda *arguments, **named: module._call_impl(*arguments, **named) * 1.001

    patch.setattr(decoder, "compile_module", compile_module)
    patch.setattr(decoder, "can_compile", lambda: True)
    patch.setattr(compiled, "can_compile", lambda: True)


def processes_weigh_the_same(patch):
    """Average over two processes, each of which has divided by its own tokens."""
    patch.setattr(two_processes, "WORKER", "tests.proofs.mean_of_two_means")


def moments_forgotten(patch):
    """Resume with the parameters of the checkpoint and moments of zero."""
    patch.setattr(loop, "give_optimizer", lambda *_: None)


def gradient_of_queries(patch):
    """Scale the gradient of the queries wrongly, as a kernel that forgets a factor."""
    true = blockwise.attend_backward

    def attend_backward(*arguments):
        dq, dk, dv = true(*arguments)
        return dq * 1.001, dk, dv

    patch.setattr(blockwise, "attend_backward", attend_backward)


def scale_of_another_block(patch):
    """Look the scales up from the first block on, whichever rows are dequantised."""
    true = nf4.dequantize_into
    patch.setattr(linear, "BLOCK_WEIGHTS", 1024)
    patch.setattr(nf4, "dequantize_into", lambda *arguments, first_block=0: true(*arguments))


def one_layer_stays_on(patch):
    """Leave the first layer's adapter on."""
    true = disable.lora_layers
    patch.setattr(disable, "lora_layers", lambda model: list(true(model))[1:])


def scale_lost_in_merging(patch):
    """Merge B @ A without its scale."""
    true = MergeableLayer.merged_weight

    def merged_weight(self, dtype):
        scaling, self.scaling = self.scaling, 1.0
        try:
            return true(self, dtype)
        finally:
            self.scaling = scaling

    patch.setattr(MergeableLayer, "merged_weight", merged_weight)


def parts_in_another_order(patch):
    """Cut q, v, k out of rows that are q, k, v."""
    true = peft_split._sizes

    def sizes(config):
        parts = true(config)
        return parts | {"qkv_proj": {name: parts["qkv_proj"][name] for name in ("q_proj", "v_proj", "k_proj")}}

    patch.setattr(peft_split, "_sizes", sizes)


def saved_in_sixteen_bits(patch):
    """Save the adapter in bfloat16."""
    true = adapter.write_tensors

    def write_tensors(path, tensors, *rest):
        true(path, {name: tensor.bfloat16().float() for name, tensor in tensors.items()}, *rest)

    patch.setattr(adapter, "write_tensors", write_tensors)


def newest_key_not_seen(patch):
    """Let a new token see the cache as it was before its own key came."""
    true = cached._attend_one_each
    patch.setattr(NativeStep, "of", lambda model: None)  # it may have been loaded already, and attends by itself
    patch.setattr(cached, "_attend_one_each", lambda q, k, v, column, *rest: true(q, k, v, column - 1, *rest))


def positions_of_the_longest(patch):
    """Turn every new token of a batch as if its text were as long as the longest one."""
    true = Engine._logits

    def logits(self, ids, positions, adapters, ends, rows):
        is_step = rows is None
        return true(self, ids, [max(positions)] * len(ids) if is_step else positions, adapters, ends, rows)

    patch.setattr(NativeStep, "of", lambda model: None)  # it takes positions from the cache
    patch.setattr(Engine, "_logits", logits)


def another_rotation(patch):
    """Rotate by slightly other frequencies, everywhere alike."""
    true = rotary.rope_tables
    patch.setattr(rotary, "rope_tables", lambda positions, frequencies, factor: true(positions, frequencies * 1.01, factor))


def another_rule_for_the_scale(patch):
    """Scale by twice alpha / r, in training and in what is loaded alike."""
    for module in (inject, adapter):
        for name in ("find_targets", "target_of"):
            if hasattr(module, name):
                patch.setattr(module, name, _doubled(getattr(module, name)))


def _doubled(function):
    def twice(*arguments):
        found = function(*arguments)
        if isinstance(found, list):
            return [(replace(target, scaling=2 * target.scaling), module) for target, module in found]
        return replace(found, scaling=2 * found.scaling)

    return twice


FAULTS = {
    "rows = prompts": mask_shifted_by_one,
    "packed = separate": border_one_too_late,
    "no row sees another": scale_of_the_whole_stream,
    "shared prompts = separate": position_after_a_shared_beginning,
    "accumulation = one step": mean_of_means,
    "loss in chunks = whole": last_row_of_a_chunk,
    "recomputed = kept": rounded_before_it_is_computed_again,
    "compiled = eager": compiler_makes_another_function,
    "two processes = one": processes_weigh_the_same,
    "resumed = never stopped": moments_forgotten,
    "attention kernel = plain": gradient_of_queries,
    "four bits = dequantised": scale_of_another_block,
    "adapter off = base": one_layer_stays_on,
    "merged = unmerged": scale_lost_in_merging,
    "fused = split": parts_in_another_order,
    "saved = loaded": saved_in_sixteen_bits,
    "cached = uncached answers": newest_key_not_seen,
    "batched = alone answers": positions_of_the_longest,
    "ours = transformers": another_rotation,
    "ours = PEFT": another_rule_for_the_scale,
}
