"""A merged model as a plain Hugging Face directory, read back by transformers.

data in: a run → out: a directory that AutoModelForCausalLM loads.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lorakeet.data.conversation import Conversation
from lorakeet.exports.artefact import EXACT, HALF, Answer, Format, Options, Reader, Source, Written
from lorakeet.exports.merge import merge

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_NUM_TOP = 256


def write(source: Source, directory: Path, options: Options) -> Written:
    """Merge base and adapter into `directory`."""
    inner = directory / "model"
    merged = merge(source.base, source.adapter, inner, dtype=DTYPES[options.dtype] if options.dtype else None)
    for file in inner.iterdir():
        file.rename(directory / file.name)
    inner.rmdir()
    return Written(
        dtype=merged.dtype,
        commands=("lorakeet chat {path}", "vllm serve {path}"),
        limits=EXACT if merged.dtype == "float32" else HALF,
    )


class TransformersReader:
    """A model directory in transformers."""

    def __init__(self, directory: Path) -> None:
        import transformers

        self.consumer = f"transformers {transformers.__version__}"
        self._model: Any = transformers.AutoModelForCausalLM.from_pretrained(directory).eval()
        self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(directory)

    def prompt_ids(self, conversation: Conversation) -> list[int]:
        """Apply the directory's own chat template and tokenizer."""
        messages = [{"role": message.role, "content": message.content} for message in conversation.messages]
        return list(self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))

    def ends_at(self, token_id: int) -> bool:
        """Look the token up where `generate` does."""
        stops = self._model.generation_config.eos_token_id
        return token_id in (stops if isinstance(stops, list) else [stops])

    def answer(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> list[Answer]:
        """Generate greedily, one prompt after the other."""
        return [self._answer(prompt, num_tokens) for prompt in prompts]

    def _answer(self, prompt: Sequence[int], num_tokens: int) -> Answer:
        with torch.inference_mode():
            output = self._model.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                max_new_tokens=num_tokens,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
        logprobs_NV = torch.stack([step[0] for step in output.logits]).float().log_softmax(-1)
        top = logprobs_NV.topk(min(_NUM_TOP, logprobs_NV.shape[-1]))
        return Answer(output.sequences[0, len(prompt) :].tolist(), top.indices, top.values)

    def close(self) -> None:
        """Let go of the model."""
        del self._model


def read(source: Source, directory: Path) -> Reader:
    """Load the directory with transformers."""
    return TransformersReader(directory)


FORMAT = Format("hf", "a merged model for transformers, vLLM and whatever else reads that", tuple(DTYPES), write, read)
