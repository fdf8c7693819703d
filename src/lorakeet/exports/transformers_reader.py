"""A model in transformers as the parity gate asks it: one reader for merged directories and for adapters in PEFT.

data in: a loaded model and tokenizer of transformers → out: prompt ids, stops and greedy answers with log-probabilities.
N positions, V vocabulary.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lorakeet.data.conversation import Conversation
from lorakeet.exports.artefact import Answer

_NUM_TOP = 256


class TransformersReader:
    """A causal language model of transformers, with its tokenizer and stop ids."""

    def __init__(self, consumer: str, model: Any, tokenizer: Any) -> None:
        self.consumer = consumer
        self._model = model.eval()
        self._tokenizer = tokenizer

    @classmethod
    def of_directory(cls, directory: Path, dtype: torch.dtype | None = None) -> "TransformersReader":
        """Load a model directory as its users do; compute in `dtype`, or in that of its weights."""
        import transformers

        model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=dtype or "auto")
        tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
        return cls(f"transformers {transformers.__version__}", model, tokenizer)

    def prompt_ids(self, conversation: Conversation) -> list[int]:
        """Apply the directory's own chat template and tokenizer."""
        messages = [{"role": message.role, "content": message.content} for message in conversation.messages]
        return list(self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))

    def ends_at(self, token_id: int) -> bool:
        """Look the token up where `generate` does."""
        stops = self._model.generation_config.eos_token_id
        return token_id in (stops if isinstance(stops, list) else [stops])

    def answer(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> list[Answer]:
        """Generate greedily, all prompts side by side."""
        if not prompts:
            return []
        longest, device = max(map(len, prompts)), self._model.device
        with torch.inference_mode():
            output = self._model.generate(
                input_ids=torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device),
                attention_mask=torch.tensor(
                    [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device
                ),
                max_new_tokens=num_tokens,
                do_sample=False,
                pad_token_id=0,
                output_logits=True,
                return_dict_in_generate=True,
            )
        answers = output.sequences[:, longest:].tolist()
        return [self._answer(answer, [step[i] for step in output.logits]) for i, answer in enumerate(answers)]

    def _answer(self, ids: list[int], logits: Sequence[torch.Tensor]) -> Answer:
        """Cut an answer behind its first stop: the others of its batch went on."""
        length = next((i for i, token in enumerate(ids, 1) if self.ends_at(token)), len(ids))
        logprobs_NV = torch.stack(list(logits[:length])).float().log_softmax(-1)
        top = logprobs_NV.topk(min(_NUM_TOP, logprobs_NV.shape[-1]))
        return Answer(ids[:length], top.indices, top.values)

    def close(self) -> None:
        """Let go of the model."""
        del self._model
