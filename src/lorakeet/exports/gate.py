"""The parity gate: does an artefact, loaded by the program it is for, answer as the live model does?

data in: a run, its artefact's reader, probes → out: Parity, and what in it is not good enough. The consumer goes
first and is closed; then the live model is loaded and reads the very answers that the consumer gave, all in one pass.
So the two are never in memory together, and that pass gives everything: the probability of every token the consumer
thought likely, and where its own greedy answer would have gone another way.

N positions behind a prompt, K tokens that the consumer holds most probable, V vocabulary.
"""

import itertools
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import torch

from lorakeet import progress
from lorakeet.errors import AdapterError
from lorakeet.exports.artefact import Answer, Limits, Reader, Source
from lorakeet.exports.probes import Probes
from lorakeet.lora.disable import disabled_adapters
from lorakeet.machine.memory import free_bytes
from lorakeet.models.decoder import CausalLM

NUM_LONG, LONG = 4, 64
"""So many probes are answered with so many tokens."""
NUM_SHORT, SHORT = 8, 4
"""And so many others with so many: ids are compared for all probes, logits for these."""
NUM_FEW, FEW = 3, 8
"""Of a large model only the shortest prompts, so many and with so many tokens: the rest would take tens of minutes."""
MOST_WORK = 2e12
"""Weights times tokens from where on that is so: about a minute on two ordinary cores."""
TIE = 0.1
"""Two tokens whose log-probabilities are nearer than this, in nats, may change places by rounding alone."""


@dataclass(frozen=True)
class Parity:
    """What an artefact and the live model have in common."""

    consumer: str
    num_probes: int
    num_rows: int
    """Probes that are the run's own held-out rows."""
    num_unsayable: int
    """Held-out rows left out, since their text names control tokens, which other programs read as the tokens."""
    num_equal_ids: int
    """Probes of which the consumer makes the same prompt ids."""
    first_difference: str
    """Where the ids of the first other probe part; "" if there is none."""
    missing_stops: tuple[str, ...]
    """Tokens that end an answer here but not in the consumer."""
    num_positions: int
    top1: float
    """Share of positions at which both hold the same token most probable."""
    parted: float
    """Share at which the live model clearly prefers its own one: by more than rounding to 16 bits can change."""
    mean_kl: float
    """Mean divergence of the consumer's next-token distribution from the live model's, in nats; the tokens that the
    consumer does not name count as one."""
    max_kl: float
    greedy: float
    """Share of the long answers' tokens before the live model would have gone another way."""
    strength: float | None
    """How much of the adapter's effect on the logits arrived: 1 is all; None if the adapter changes nothing."""
    strength_error: float
    """The standard error of that, from what moves the logits beside the adapter."""
    limits: tuple[str, ...]
    """In what the proof was less than a whole one, a sentence each."""
    seconds: float

    @property
    def ids_are_equal(self) -> bool:
        """Tell whether every prompt has the same ids."""
        return self.num_equal_ids == self.num_probes


@dataclass
class _Sums:
    """Figures added up over positions."""

    positions: int = 0
    same: int = 0
    parted: int = 0
    kl: float = 0.0
    max_kl: float = 0.0
    long: int = 0
    agreed: int = 0
    moved: float = 0.0
    effect: float = 0.0
    all_moved: float = 0.0

    def strength(self) -> tuple[float | None, float]:
        """Fit the logits' movement to the adapter's effect; return the factor and its error, positions independent."""
        if self.effect == 0:
            return None, 0.0
        factor = self.moved / self.effect
        residual = max(0.0, self.all_moved - factor * self.moved)
        return factor, (residual / self.effect / self.positions) ** 0.5


def measure(source: Source, reader: Reader, probes: Probes) -> Parity:
    """Compare an artefact with the live model; the reader is closed on the way."""
    start = time.perf_counter()
    with closing(reader):
        consumer = reader.consumer
        found = [reader.prompt_ids(conversation) for conversation in probes.conversations]
        missing = tuple(_missing_stops(source, reader))
        long, short, limits = _chosen(source, probes.ids)
        progress.report(f"answering with {consumer}")
        answers = reader.answer(long, LONG if not limits else FEW) + reader.answer(short, SHORT)
    differing = [i for i, ids in enumerate(probes.ids) if ids != found[i]]
    progress.report("comparing with the live model")
    sums = _compare(source, long + short, answers, len(long))
    strength, strength_error = sums.strength()
    return Parity(
        consumer=consumer,
        num_probes=len(probes.ids),
        num_rows=probes.num_rows,
        num_unsayable=probes.num_unsayable,
        num_equal_ids=len(probes.ids) - len(differing),
        first_difference=_difference(source, probes, differing[0], found[differing[0]]) if differing else "",
        missing_stops=missing,
        num_positions=sums.positions,
        top1=sums.same / max(1, sums.positions),
        parted=sums.parted / max(1, sums.positions),
        mean_kl=sums.kl / max(1, sums.positions),
        max_kl=sums.max_kl,
        greedy=sums.agreed / max(1, sums.long),
        strength=strength,
        strength_error=strength_error,
        limits=(*probes.notes, *limits),
        seconds=time.perf_counter() - start,
    )


def _chosen(source: Source, ids: Sequence[list[int]]) -> tuple[list[list[int]], list[list[int]], tuple[str, ...]]:
    """Choose the prompts with a long answer and those with a short one, and say so if a large model gets but a few.

    They come from everywhere in the list, so that rows and made-up ones are among them.
    """
    count = min(NUM_LONG + NUM_SHORT, len(ids))
    evenly = [ids[i * len(ids) // count] for i in range(count)]
    num_tokens = sum(map(len, evenly)) + NUM_LONG * LONG + NUM_SHORT * SHORT
    if source.num_weights * num_tokens > MOST_WORK:
        why = f"the model has {source.num_weights / 1e9:.1f} billion weights"
        limit = f"limited: {why}, so only the {NUM_FEW} shortest prompts were answered, with {FEW} tokens each"
        return sorted(ids, key=len)[:NUM_FEW], [], (limit,)
    step = max(1, count // NUM_LONG)
    return evenly[::step], [one for i, one in enumerate(evenly) if i % step], ()


def failures(parity: Parity, limits: Limits) -> list[str]:
    """Return in what an artefact is not good enough, a phrase each; [] if it is good."""
    found = []
    if not parity.ids_are_equal:
        found.append(
            f"{parity.num_probes - parity.num_equal_ids} of {parity.num_probes} prompts have other token ids "
            f"({parity.first_difference})"
        )
    if parity.missing_stops:
        found.append(f"answers do not end at {', '.join(parity.missing_stops)}")
    if not parity.mean_kl <= limits.mean_kl:
        found.append(f"the next-token distributions differ by {parity.mean_kl:.2g} nats a token, allowed {limits.mean_kl:g}")
    if not parity.parted <= 1 - limits.top1:
        found.append(
            f"the most probable token is clearly another one at {parity.parted:.1%} of positions, allowed {1 - limits.top1:.1%}"
        )
    if parity.strength is not None and not abs(parity.strength - 1) <= limits.strength + 3 * parity.strength_error:
        found.append(f"the adapter's effect arrived with {parity.strength:.2f} times its strength")
    return found


def _missing_stops(source: Source, reader: Reader) -> list[str]:
    return [source.tokenizer.decode([stop]) for stop in sorted(source.tokenizer.stop_ids) if not reader.ends_at(stop)]


def _difference(source: Source, probes: Probes, index: int, found: Sequence[int]) -> str:
    """Show where two lists of ids part."""
    expected = probes.ids[index]
    pairs = zip(expected, found, strict=False)
    at = next((i for i, (one, other) in enumerate(pairs) if one != other), min(len(expected), len(found)))
    here, there = (source.tokenizer.decode(list(ids[at : at + 3])) for ids in (expected, found))
    return f"probe {index + 1}, token {at}: {here!r} here, {there!r} there"


def _compare(source: Source, prompts: Sequence[Sequence[int]], answers: Sequence[Answer], num_long: int) -> _Sums:
    """Let the live model read what the consumer said."""
    pairs = enumerate(zip(prompts, answers, strict=True))
    said = [(prompt, answer, i < num_long) for i, (prompt, answer) in pairs if answer.ids]
    sums = _Sums()
    if not said:
        return sums
    model = source.load(live_dtype(source))
    exchanges = [(prompt, answer.ids) for prompt, answer, _ in said]
    live = next_token_logits(model, exchanges)
    for (_, answer, is_long), live_NV in zip(said, live, strict=True):
        _add_distances(sums, answer, live_NV.log_softmax(-1))
        _add_agreement(sums, answer, live_NV.argmax(-1).tolist(), source.tokenizer.stop_ids, is_long=is_long)
    try:
        with disabled_adapters(model):
            base = next_token_logits(model, exchanges)
    except AdapterError:  # trained biases, or PiSSA: the base is not in the model any more
        return sums
    for (_, answer, _), live_NV, base_NV in zip(said, live, base, strict=True):
        _add_strength(sums, answer, live_NV.log_softmax(-1), base_NV.log_softmax(-1))
    return sums


def live_dtype(source: Source) -> torch.dtype | None:
    """Compute in float32 where that leaves half of the memory free, else as the base's weights are stored."""
    needed, free = source.num_weights * torch.float32.itemsize, free_bytes()
    return torch.float32 if free is None or needed < free / 2 else None


def next_token_logits(model: CausalLM, exchanges: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[torch.Tensor]:
    """Return for each prompt and answer the logits that predict the answer's tokens, (N, V), float32 on the CPU."""
    device = model.lm_head.weight.device
    texts = [[*prompt, *answer[:-1]] for prompt, answer in exchanges]
    starts = [0, *itertools.accumulate(map(len, texts))]
    ids_T = torch.tensor(list(itertools.chain(*texts)), device=device)
    positions_T = torch.cat([torch.arange(len(text), device=device) for text in texts])
    borders = torch.tensor(starts, dtype=torch.int32, device=device)
    rows_N = torch.cat(
        [
            torch.arange(start + len(prompt) - 1, start + len(text), device=device)
            for start, text, (prompt, _) in zip(starts, texts, exchanges, strict=False)
        ]
    )
    with torch.inference_mode(), torch.compiler.set_stance("force_eager"):
        hidden_ND = model(ids_T, positions_T, borders, rows_S=rows_N)
        logits_NV = model.logits(hidden_ND).float().cpu()
    return list(logits_NV.split([len(answer) for _, answer in exchanges]))


def _add_distances(sums: _Sums, answer: Answer, live_NV: torch.Tensor) -> None:
    """Add divergence and agreement of the most probable tokens."""
    named_NK = answer.top_ids_NK >= 0
    live_NK = live_NV.gather(1, answer.top_ids_NK.clamp(min=0)).exp() * named_NK
    theirs_NK = answer.top_logprobs_NK.exp() * named_NK
    kl_N = (torch.xlogy(live_NK, live_NK) - torch.xlogy(live_NK, theirs_NK.clamp(min=1e-30))).sum(-1)
    rest_N, their_rest_N = ((1 - probs.sum(-1)).clamp(min=1e-7) for probs in (live_NK, theirs_NK))
    kl_N = (kl_N + rest_N * (rest_N / their_rest_N).log()).clamp(min=0)
    sums.positions += len(kl_N)
    sums.kl += kl_N.sum().item()
    sums.max_kl = max(sums.max_kl, kl_N.max().item())
    best_N1 = answer.top_logprobs_NK.masked_fill(~named_NK, -torch.inf).argmax(-1, keepdim=True)
    theirs_N1 = answer.top_ids_NK.gather(1, best_N1)
    gap_N = live_NV.amax(-1) - live_NV.gather(1, theirs_N1)[:, 0]
    sums.same += int((theirs_N1[:, 0] == live_NV.argmax(-1)).sum())
    sums.parted += int((gap_N > TIE).sum())


def _add_agreement(sums: _Sums, answer: Answer, best: Sequence[int], stop_ids: frozenset[int], *, is_long: bool) -> None:
    """Add how far a long answer goes as the live model's own would: token by token, and where it ends."""
    if not is_long:
        return
    same = [ours == theirs or {ours, theirs} <= stop_ids for ours, theirs in zip(best, answer.ids, strict=True)]
    sums.agreed += same.index(False) if False in same else len(same)
    sums.long += len(same)


def _add_strength(sums: _Sums, answer: Answer, live_NV: torch.Tensor, base_NV: torch.Tensor) -> None:
    """Add how far the consumer's log-probabilities have moved along the way from the base's to the live model's."""
    ids_NK, named_NK = answer.top_ids_NK.clamp(min=0), answer.top_ids_NK >= 0
    base_NK = base_NV.gather(1, ids_NK)
    effect_NK = _centred(live_NV.gather(1, ids_NK) - base_NK, named_NK)
    moved_NK = _centred(answer.top_logprobs_NK - base_NK, named_NK)
    sums.moved += (moved_NK * effect_NK).sum().item()
    sums.effect += effect_NK.square().sum().item()
    sums.all_moved += moved_NK.square().sum().item()


def _centred(values_NK: torch.Tensor, named_NK: torch.Tensor) -> torch.Tensor:
    """Take the mean of every position away: a constant in the logits means nothing."""
    values_NK = values_NK.masked_fill(~named_NK, 0)
    return (values_NK - values_NK.sum(-1, keepdim=True) / named_NK.sum(-1, keepdim=True)) * named_NK
