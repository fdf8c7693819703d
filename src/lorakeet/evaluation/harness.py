"""Tasks of lm-evaluation-harness, run by its own package on our logits and our generator.

data in: a ChatModel, names of tasks → out: numbers, as the package computes them. Texts are encoded as the package's own
backend for transformers encodes them, so that the numbers are comparable. Import it only where lm_eval is installed.

S scored tokens of a pass, V vocabulary, D width.
"""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Any, cast

import torch
from lm_eval import evaluator, simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from lorakeet import progress
from lorakeet.chat_model import ChatModel
from lorakeet.data.conversation import Conversation, Message, Role
from lorakeet.errors import ConfigError
from lorakeet.infer.engine import Engine, Request
from lorakeet.infer.mode import evaluating
from lorakeet.infer.sampling import GREEDY, Sampling
from lorakeet.infer.text_stream import StopText, TextStream
from lorakeet.lora.disable import disabled_adapters

evaluator.get_git_commit_hash = lambda: None  # it runs git in the user's directory, and git complains
PASS_TOKENS = 2048
"""Tokens scored in one pass, unless a single text is longer."""
ANSWER_TOKENS = 256
"""Longest answer, if a task names no limit; the package's own."""

RESAMPLES = 500
"""Draws for the standard error of a metric that is no mean; the package's 100,000 take minutes."""

Scores = dict[str, dict[str, float]]
"""By task, then by metric; a metric's standard error is named NAME_stderr."""


class Harness(TemplateLM):
    """A ChatModel as the package sees a model."""

    def __init__(self, chat_model: ChatModel) -> None:
        super().__init__()
        self.chat_model, self.tokens, self.model = chat_model, chat_model.tokenizer, chat_model.model
        self._device = self.model.model.embed_tokens.weight.device

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self._special(self.tokens.eos_id, self.tokens.bos_id)

    @property
    def prefix_token_id(self) -> int:
        """The token before a text that has nothing before it."""
        return self._special(self.tokens.bos_id, self.tokens.eos_id)

    @staticmethod
    def _special(*ids: int | None) -> int:
        return next(id for id in ids if id is not None)

    @property
    def tokenizer_name(self) -> str:
        """What tells the texts of this model from another's."""
        return self.tokens.fingerprint

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Return what tells its chat template from another's."""
        return self.tokens.chat_template or ""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Write a conversation as the model's template does."""
        turns = tuple(Message(cast("Role", turn["role"]), turn["content"]) for turn in chat_history)
        pieces = self.chat_model.template.render(Conversation(turns), add_generation_prompt=add_generation_prompt)
        return "".join(piece.text for piece in pieces)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Encode a text, control tokens in it included, as transformers does."""
        begins = self.tokens.bos_token is not None and string.startswith(self.tokens.bos_token)
        is_added = not begins if add_special_tokens is None else add_special_tokens
        return self.tokens.full.encode(string, add_special_tokens=is_added).ids

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Return for each continuation of a context its log probability, and whether it is the most likely one."""
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """Return the log probability of each whole text, in windows as long as the context."""
        windows = [[make_disjoint_window(one) for one in self._windows(*request.args)] for request in requests]
        scores = iter(self._loglikelihood_tokens([(("", ""), *window) for text in windows for window in text]))
        return [sum(next(scores)[0] for _ in text) for text in windows]

    def _windows(self, text: str) -> Iterator[tuple[list[int], list[int]]]:
        return get_rolling_token_windows(
            token_list=self.tok_encode(text),
            prefix_token=self.prefix_token_id,
            max_seq_len=self.chat_model.context,
            context_len=1,
        )

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """Score continuations, several texts end to end in one pass, the longest first."""
        rows = [((context + ids)[-self.chat_model.context - 1 :], len(ids)) for _, context, ids in requests]
        scores: list[tuple[float, bool]] = [(0.0, True)] * len(rows)
        with evaluating(self.model):
            for batch in _batches(sorted(range(len(rows)), key=lambda row: -len(rows[row][0])), rows):
                for row, score in zip(batch, self._scored([rows[row] for row in batch]), strict=True):
                    scores[row] = score
        return scores

    def _scored(self, rows: Sequence[tuple[list[int], int]]) -> Iterator[tuple[float, bool]]:
        """Score the last tokens of each row: (its ids, how many of them count)."""
        ends = torch.tensor([0, *(len(ids) - 1 for ids, _ in rows)], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        ids = torch.tensor([id for ids, _ in rows for id in ids[:-1]], device=self._device)
        positions = torch.cat([torch.arange(len(ids) - 1) for ids, _ in rows]).to(self._device)
        rows_S = [at for end, (_, count) in zip(ends[1:].tolist(), rows, strict=True) for at in range(end - count, end)]
        hidden_SD = self.model(
            ids, positions, ends.to(self._device), rows_S=torch.tensor(rows_S, device=self._device), cache=None
        )
        logprobs_SV = self.model.logits(hidden_SD).float().log_softmax(-1)
        targets_S = torch.tensor([id for ids, count in rows for id in ids[len(ids) - count :]], device=self._device)
        found_S = logprobs_SV.gather(1, targets_S[:, None])[:, 0]
        greedy_S = logprobs_SV.argmax(-1) == targets_S
        counts = [count for _, count in rows]
        for one, greedy in zip(found_S.split(counts), greedy_S.split(counts), strict=True):
            yield float(one.sum()), bool(greedy.all())

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Answer each context, up to a stop string of its task."""
        engine, answers = Engine(self.model), [_Answer(self, *request.args) for request in requests]
        with evaluating(self.model):
            streams = [engine.submit(answer.request) for answer in answers]
            while engine.advance():
                for answer, stream in zip(answers, streams, strict=True):
                    if answer.stop.is_stopped:
                        engine.cancel(stream)
        for stream in streams:
            if stream.error is not None:
                raise stream.error
        return [answer.finish() for answer in answers]


class _Answer:
    """One context and what is said behind it."""

    def __init__(self, harness: Harness, context: str, options: Mapping[str, Any]) -> None:
        wanted = dict(normalize_gen_kwargs(dict(options), ANSWER_TOKENS))
        limit, is_drawn = wanted.pop("max_gen_toks"), wanted.pop("do_sample", False)
        self.stop, self._text = StopText(wanted.pop("until", [])), TextStream(harness.tokens)
        known = {name: wanted.pop(name) for name in ("temperature", "top_p", "top_k", "min_p") if name in wanted}
        if wanted:
            found = f"a task asks for {', '.join(sorted(wanted))}, which is not done here"
            raise ConfigError("E-CFG-133", found, place="--task", fix="Run it with lm_eval and its own backend")
        self.request = Request(
            prompt=harness.tok_encode(context)[-(harness.chat_model.context - limit) :],
            stop_ids=harness.tokens.stop_ids,
            max_new_tokens=limit,
            sampling=Sampling(**known) if is_drawn else GREEDY,
            on_token=lambda token: self._take(self._text.push(token.id)),
        )
        self._said = ""

    def _take(self, piece: str) -> None:
        if not self.stop.is_stopped:
            self._said += self.stop.push(piece)

    def finish(self) -> str:
        """Return the whole answer."""
        self._take(self._text.finish())
        return self._said + self.stop.finish()


def _batches(order: Sequence[int], rows: Sequence[tuple[list[int], int]]) -> Iterator[list[int]]:
    """Cut rows, in this order, into batches of at most PASS_TOKENS tokens."""
    batch: list[int] = []
    for row in order:
        if batch and sum(len(rows[one][0]) for one in (*batch, row)) > PASS_TOKENS:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def run_tasks(
    chat_model: ChatModel,
    names: Sequence[str],
    *,
    base: bool = True,
    max_rows: int | None = None,
    num_fewshot: int | None = None,
    with_template: bool = False,
    folder: Path | None = None,
) -> dict[str, Scores]:
    """Run tasks on a model with its adapter, and without it if `base`; return the numbers of each.

    Args:
        num_fewshot: examples in the prompt; None for each task's own number.
        with_template: write questions as turns of a conversation, in the model's template.
        folder: holds the YAML files of further tasks.
    Raises: ConfigError E-CFG-134 for a task or a folder that there is not, 135 if a task's rows cannot be had.
    """
    if folder is not None and not folder.is_dir():
        raise ConfigError(
            "E-CFG-134", f"{folder} is no folder", place="--include-path", fix="Name that of your tasks' YAML files"
        )
    own = None if folder is None else str(folder)
    # The package's own thousands of tasks are looked through only if they are needed.
    tasks = TaskManager(include_path=own, include_defaults=False)
    if not set(names) <= set(tasks.all_tasks):
        tasks = TaskManager(include_path=own)
    unknown = [name for name in names if name not in tasks.all_tasks]
    if unknown:
        raise ConfigError(
            "E-CFG-134", f"no task is named {', '.join(unknown)}", place="--task", fix="List them: lm-eval ls tasks"
        )
    os.environ.setdefault("DISABLE_MULTIPROC", "1")  # its processes for standard errors would be copies of this one
    found: dict[str, Scores] = {}
    for column in ("base", "tuned") if base else ("tuned",):
        progress.report(f"{column}: {', '.join(names)}")
        # What the package prints is not what the command prints.
        with disabled_adapters(chat_model.model) if column == "base" else nullcontext(), redirect_stdout(sys.stderr):
            try:
                results = simple_evaluate(
                    model=Harness(chat_model),
                    tasks=list(names),
                    num_fewshot=num_fewshot,
                    limit=max_rows,
                    apply_chat_template=with_template,
                    bootstrap_iters=RESAMPLES,
                    log_samples=False,
                    task_manager=tasks,
                )
            except OSError as error:  # a file that is not there, a hub that cannot be reached
                reason = " ".join(str(error).split())
                fix = "Check the task's files, or the connection to the hub"
                raise ConfigError("E-CFG-135", f"the rows cannot be loaded: {reason}", place="--task", fix=fix) from None
        assert results is not None, "only other processes than the first have no results"
        found[column] = {task: _numbers(values) for task, values in results["results"].items()}
    return found


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Return what is a number, under its metric's name; the package writes "metric,filter"."""
    return {
        name.removesuffix(",none"): float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and "," in name
    }
