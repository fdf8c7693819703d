"""Every GGUF of the demo's model, in every type, against the live model: the long version of the tests beside it.

    python -m tests.exports.every_type [RUN]

Without RUN it trains one first, for a few minutes. Prints a row for each artefact, with what exporting and proving took.
"""

import dataclasses
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

import torch

import lorakeet
from lorakeet import api
from lorakeet.data.encode import encode_many
from lorakeet.data.prepare import read_rows
from lorakeet.exports import gate
from lorakeet.exports.export import describe
from lorakeet.exports.gguf_file import TYPES
from lorakeet.exports.llama_cpp import LlamaCppReader
from lorakeet.infer.engine import generate

ARTEFACTS = [*(("gguf", dtype) for dtype in TYPES), ("gguf-adapter", "f32"), ("ollama", "q8_0")]
LEAST_TOP1 = {"f32": 1.0, "q8_0": 0.97}
MOST_GAP = {"f32": 0.001, "f16": 0.01, "bf16": 0.1}
"""How far apart two tokens may be, in nats, for a rounding of this kind to choose the other one."""
LOST = {"q4_1"}
"""The demo's base weights lie on this type's very grid: each merged weight is rounded back to the base's, and the adapter is
gone. The gate must refuse it."""
NUM_TEXTS, NUM_TOKENS = 20, 48
TRAINED_STEPS = 40


def main(run: str | None = None) -> None:
    """Export, prove and print."""
    with tempfile.TemporaryDirectory() as folder:
        opened = api.open_run(run) if run else train(Path(folder) / "run")
        expected = live_texts(opened)
        failed: list[str] = []
        for form, dtype in ARTEFACTS:
            output = Path(folder) / f"{form}-{dtype}"
            start = time.perf_counter()
            exported = opened.export(form, output, dtype=dtype, force=dtype in LOST)
            seconds = time.perf_counter() - start
            parity = exported.parity
            assert parity is not None, exported.unchecked
            failed += [f"{form} {dtype}: passed"] if dtype in LOST and not exported.failures else []
            failed += [f"{form} {dtype}: top-1 {parity.top1:.2%}"] if parity.top1 < LEAST_TOP1.get(dtype, 0) else []
            print("\n".join(describe(exported)))
            print(
                f"  exported in {seconds - parity.seconds:.1f} s, proven in {parity.seconds:.1f} s, {peak_gb():.2f} GB at most"
            )
            if form == "gguf":
                gaps = gaps_where_parted(opened, expected, texts(opened, output))
                print(
                    f"  {NUM_TEXTS - len(gaps)} of {NUM_TEXTS} greedy answers are the live model's to the letter; where one is "
                    f"not, the live model preferred its own token by {', '.join(f'{gap:.3f}' for gap in gaps) or 0} nats",
                    flush=True,
                )
                failed += [f"{form} {dtype}: other answers" for gap in gaps if gap > MOST_GAP.get(dtype, 100)]
            if (form, dtype) == ("gguf", "f32"):
                print(f"  log-probabilities differ by {largest_difference(opened, output):.1e} at most", flush=True)
            shutil.rmtree(output)
    if failed:
        sys.exit("FAILED: " + "; ".join(failed))


def train(directory: Path) -> api.Run:
    """Teach the demo's task for a few steps, as `lorakeet demo` does."""
    from lorakeet.demo_task import recipe

    settings = {**recipe.RECIPE, "output_dir": str(directory), "max_steps": TRAINED_STEPS}
    settings.pop("num_train_epochs", None)
    return lorakeet.train("demo", "demo", training_config=settings, peft_config=recipe.PEFT_RECIPE)


def prompts(run: api.Run) -> list[list[int]]:
    """Return the first held-out prompts."""
    source = run.source()
    asked = [dataclasses.replace(row, messages=row.messages[:-1]) for row in read_rows(run.config)[1][:NUM_TEXTS]]
    return [one.input_ids for one in encode_many(asked, source.tokenizer, source.template, add_generation_prompt=True)]


def live_texts(run: api.Run) -> list[list[int]]:
    """Answer with the live model, in the precision that the gate uses."""
    source = run.source()
    model = source.load(gate.live_dtype(source))
    answers = generate(model, prompts(run), stop_ids=source.tokenizer.stop_ids, max_new_tokens=NUM_TOKENS)
    return [answer.ids for answer in answers]


def gaps_where_parted(run: api.Run, expected: list[list[int]], found: list[list[int]]) -> list[float]:
    """Return for each answer that differs how far the live model held its own token above the other one, in nats."""
    source = run.source()
    stop = min(source.tokenizer.stop_ids)
    parted = []
    for prompt, ours, theirs in zip(prompts(run), expected, found, strict=True):
        if ours != theirs:
            pairs = zip([*ours, stop], [*theirs, stop], strict=False)
            at = next(i for i, (one, other) in enumerate(pairs) if one != other)
            parted.append(([*prompt, *ours[:at]], [*ours, stop][at], [*theirs, stop][at]))
    if not parted:
        return []
    live = gate.next_token_logits(source.load(gate.live_dtype(source)), [(before, [ours]) for before, ours, _ in parted])
    return [(row[0, ours] - row[0, theirs]).item() for row, (_, ours, theirs) in zip(live, parted, strict=True)]


def largest_difference(run: api.Run, directory: Path) -> float:
    """Return by how much log-probabilities of the 2,000 most probable tokens differ at most, over four answers."""
    source = run.source()
    asked = prompts(run)[:4]
    reader = LlamaCppReader(next(directory.glob("*.gguf")), source.config)
    answers = reader.answer(asked, 8, num_top=2000)
    reader.close()
    live = gate.next_token_logits(source.load(torch.float32), [(p, a.ids) for p, a in zip(asked, answers, strict=True)])
    return max(
        (answer.top_logprobs_NK - logits_NV.log_softmax(-1).gather(1, answer.top_ids_NK)).abs().max().item()
        for answer, logits_NV in zip(answers, live, strict=True)
    )


def texts(run: api.Run, directory: Path) -> list[list[int]]:
    """Answer with llama.cpp."""
    source = run.source()
    reader = LlamaCppReader(next(directory.glob("*.gguf")), source.config)
    answers = reader.answer(prompts(run), NUM_TOKENS, num_top=1)
    reader.close()
    return [[token for token in answer.ids if token not in source.tokenizer.stop_ids] for answer in answers]


def peak_gb() -> float:
    """Return the most memory this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


if __name__ == "__main__":
    main(*sys.argv[1:])
