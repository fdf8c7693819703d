"""Answers of the model at every evaluation, to see what the loss cannot say.

data in: prompts, or held-out conversations → out: greedy answers by the one generator, in RUN/samples.jsonl and on
the console. Nothing of training is touched: no dropout, no random number, every module's own mode afterwards.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.text import Text

from lorakeet.config import RunConfig
from lorakeet.data.conversation import Conversation, Message
from lorakeet.data.encode import encode_many
from lorakeet.data.prepare import PreparedData
from lorakeet.data.templates.template import Template
from lorakeet.data.tokenizer import Tokenizer
from lorakeet.errors import ConfigError
from lorakeet.evaluation.generation import question_of, reference_of
from lorakeet.infer.engine import generate
from lorakeet.models.decoder import CausalLM
from lorakeet.training.reporting import JsonlReporter, Reporter, Reporters, Row


@dataclass(frozen=True)
class Question:
    """What is asked again and again."""

    conversation: Conversation
    reference: str | None = None
    """The answer that is known, where the question is a held-out row."""


def build_sampler(config: RunConfig, data: PreparedData, tokenizer: Tokenizer, template: Template, context: int) -> "Sampler":
    """Build what the configuration asks for: its own prompts, or the last answers of held-out rows; or nothing."""
    settings, wanted = config.training_config, config.training_config.sample_prompts
    if isinstance(wanted, int):
        answered = [row for row in data.held_out_rows if any(turn.role == "assistant" for turn in row.messages)]
        questions = [Question(question_of(row), reference_of(row, template)) for row in answered[:wanted]]
    else:
        system = config.data.system if config.data.system is not None else data.system
        opening = [Message("system", system)] if system is not None else []
        questions = [
            Question(Conversation((*opening, Message("user", prompt)), place=f"sample_prompts[{index}]"))
            for index, prompt in enumerate(wanted)
        ]
    return Sampler(tokenizer, template, questions, max_new_tokens=settings.sample_max_new_tokens, context=context)


class Sampler:
    """Answers the same questions whenever it is called."""

    def __init__(
        self, tokenizer: Tokenizer, template: Template, questions: Sequence[Question], *, max_new_tokens: int, context: int
    ) -> None:
        """Encode the questions; `context` is the model's limit in tokens.

        Raises: ConfigError E-CFG-44 if a question leaves no room for an answer.
        """
        self.tokenizer, self.questions, self.max_new_tokens = tokenizer, questions, max_new_tokens
        self.reporters = Reporters()
        conversations = [question.conversation for question in questions]
        encoded = encode_many(conversations, tokenizer, template, add_generation_prompt=True)
        self.prompts = [example.input_ids for example in encoded]
        for conversation, prompt in zip(conversations, self.prompts, strict=True):
            if len(prompt) >= context:
                raise ConfigError(
                    "E-CFG-44",
                    f"has {len(prompt)} tokens; the model's context holds {context} with the answer",
                    place=conversation.place,
                    fix="Shorten the prompt",
                )

    @contextmanager
    def reporting(self, run_directory: Path, first_step: int, console: Console) -> Iterator[None]:
        """Tell RUN/samples.jsonl and the console of answers; of nothing where nothing is asked."""
        told: list[Reporter] = []
        if self.questions:
            told = [JsonlReporter(run_directory / "samples.jsonl", first_step), SampleConsoleReporter(console)]
        with Reporters(*told) as self.reporters:
            yield

    def sample(self, model: CausalLM, step: int) -> list[Row]:
        """Answer every question."""
        # A cache that grows would be compiled anew for every length.
        with torch.compiler.set_stance("force_eager"):
            generations = generate(model, self.prompts, stop_ids=self.tokenizer.stop_ids, max_new_tokens=self.max_new_tokens)
        return [
            {
                "step": step,
                "place": question.conversation.place,
                "prompt": question.conversation.messages[-1].content if question.conversation.messages else "",
                **({} if question.reference is None else {"reference": question.reference}),
                "text": self.tokenizer.decode(generation.ids, skip_control=True),
                "stop_reason": generation.stop_reason,
            }
            for question, generation in zip(self.questions, generations, strict=True)
        ]

    def open_reporters(self, run_directory: Path, first_step: int, console: Console) -> Reporters:
        """Open what tells of samples; nothing where nothing is asked."""
        if not self.questions:
            return Reporters()
        return Reporters(JsonlReporter(run_directory / "samples.jsonl", first_step), SampleConsoleReporter(console))


class SampleConsoleReporter:
    """Shows samples on stderr, one line a part; what models and users wrote is never read as markup."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def step(self, row: Row) -> None:
        """Show nothing of single steps."""

    def log(self, row: Row) -> None:
        """Show a question, the model's answer, and the known one."""
        parts = [("prompt", "prompt"), ("answer", "text"), ("expected", "reference")]
        lines = [f"{shown:10}{_one_line(row[key])}" for shown, key in parts if key in row]
        self._console.print(Text(f"step {row['step']:>5}  {lines[0]}"), soft_wrap=True)
        for line in lines[1:]:
            self._console.print(Text(" " * 12 + line, style="dim"), soft_wrap=True)

    def close(self) -> None:
        """Nothing is open."""


def _one_line(text: str, longest: int = 300) -> str:
    line = " ".join(text.split())
    return line if len(line) <= longest else f"{line[: longest - 1]}…"
