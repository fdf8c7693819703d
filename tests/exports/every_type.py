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
NUM_TEXTS, NUM_TOKENS = 20, 48
TRAINED_STEPS = 40


def main(run: str | None = None) -> None:
    """Export, prove and print."""
    with tempfile.TemporaryDirectory() as folder:
        opened = api.open_run(run) if run else train(Path(folder) / "run")
        expected = live_texts(opened)
        for form, dtype in ARTEFACTS:
            output = Path(folder) / f"{form}-{dtype}"
            start = time.perf_counter()
            exported = opened.export(form, output, dtype=dtype)
            seconds = time.perf_counter() - start
            parity = exported.parity
            assert parity is not None, exported.unchecked
            assert parity.top1 >= LEAST_TOP1.get(dtype, 0), parity
            print("\n".join(describe(exported)))
            print(
                f"  exported in {seconds - parity.seconds:.1f} s, proven in {parity.seconds:.1f} s, {peak_gb():.2f} GB at most"
            )
            if form == "gguf":
                same = sum(one == other for one, other in zip(expected, texts(opened, output), strict=True))
                print(f"  {same} of {NUM_TEXTS} greedy answers are the live model's to the letter", flush=True)
                assert same == NUM_TEXTS or dtype not in ("f32", "f16", "bf16")
            shutil.rmtree(output)


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
