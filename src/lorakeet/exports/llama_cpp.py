"""A GGUF file as llama.cpp loads it: its tokenizer, its chat template, its stops, its logits.

data in: a GGUF file, with a LoRA file or without → out: a Reader for the parity gate. It asks llama.cpp's server
(package xllamacpp) over loopback and knows nothing of the file itself.
"""

import http.client
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch

from lorakeet.data.conversation import Conversation
from lorakeet.errors import ExportError
from lorakeet.exports.artefact import Answer, Missing, Reader
from lorakeet.models.config import DecoderConfig

NUM_TOP = 32
"""Tokens whose probabilities are asked for: each costs time, and the rest count as one."""
MAX_CONTEXT = 1024
_MISSING = Missing("llama.cpp", "pip install 'lorakeet[llamacpp]'")


def read_gguf(file: Path, config: DecoderConfig, lora: Path | None = None) -> Reader | Missing:
    """Load a GGUF file with llama.cpp, where that is installed."""
    return LlamaCppReader(file, config, lora) if importlib.util.find_spec("xllamacpp") else _MISSING


class LlamaCppReader:
    """A GGUF file in llama.cpp's server."""

    def __init__(self, file: Path, config: DecoderConfig, lora: Path | None = None) -> None:
        self.consumer = f"llama.cpp (xllamacpp {importlib.metadata.version('xllamacpp')})"
        self.vocab_size = config.vocab_size
        context = min(MAX_CONTEXT, config.max_position_embeddings, config.original_max_position_embeddings)
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        command = [sys.executable, "-m", "lorakeet.exports.llama_cpp_server", str(file), str(context)]
        command += [str(torch.get_num_threads()), *([str(lora)] if lora is not None else [])]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, env=_quiet(os.environ)
        )
        try:
            self._address = urlsplit(self._wait_for_address())
        except BaseException:
            self.close()
            raise

    def _wait_for_address(self) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("listening on "):
                return line.removeprefix("listening on ").strip()
        raise self._failure("cannot load it")

    def _failure(self, what: str) -> ExportError:
        self._process.wait()
        self._log.seek(0)
        lines = [line for line in self._log.read().decode("utf-8", "replace").splitlines() if "error" in line.lower()]
        said = lines[0].strip() if lines else f"it ended with status {self._process.returncode}"
        return ExportError("E-EXP-205", f"{self.consumer} {what}: {said[:300]}", fix="Nothing was left there")

    def _ask(self, path: str, body: dict[str, Any]) -> Any:
        """Send one request. Raises: ExportError E-EXP-205 if llama.cpp refuses it or has died."""
        assert self._address.hostname is not None
        connection = http.client.HTTPConnection(self._address.hostname, self._address.port or 80)
        try:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            answer = json.loads(response.read())
        except (OSError, http.client.HTTPException):
            raise self._failure("has died") from None
        finally:
            connection.close()
        if response.status != http.client.OK:
            raise ExportError("E-EXP-205", f"{self.consumer} refuses {path}: {answer}"[:400], fix="Nothing was left there")
        return answer

    def prompt_text(self, conversation: Conversation) -> str:
        """Render a conversation with the template in the file."""
        messages = [{"role": message.role, "content": message.content} for message in conversation.messages]
        return self._ask("/apply-template", {"messages": messages})["prompt"]

    def prompt_ids(self, conversation: Conversation) -> list[int]:
        """Render and tokenise a conversation as a chat does."""
        return self.ids_of_text(self.prompt_text(conversation))

    def ids_of_text(self, text: str) -> list[int]:
        """Tokenise a rendered conversation."""
        return self._ask("/tokenize", {"content": text, "add_special": True, "parse_special": True})["tokens"]

    def ends_at(self, token_id: int) -> bool:
        """Force the token as an answer's first, and look whether the answer ends."""
        forced = {"logit_bias": [[token_id, 1e6]], "n_predict": 2, "temperature": 0, "cache_prompt": False}
        return self._ask("/completion", {"prompt": [token_id], **forced})["stop_type"] == "eos"

    def answer(self, prompts: Sequence[Sequence[int]], num_tokens: int, num_top: int = NUM_TOP) -> list[Answer]:
        """Answer greedily, several prompts at once."""
        if not prompts:
            return []
        options = {"n_predict": num_tokens, "n_probs": num_top, "temperature": 0, "cache_prompt": False, "return_tokens": True}
        results = self._ask("/completion", {"prompt": [list(ids) for ids in prompts], **options})
        results = results if isinstance(results, list) else [results]
        return [self._answer(result, num_top) for result in sorted(results, key=lambda result: result["index"])]

    def _answer(self, result: dict[str, Any], num_top: int) -> Answer:
        """Read one answer. Tokens that are parts of a character have no probabilities: it ends before the first one."""
        steps = result.get("completion_probabilities", [])
        tokens = result["tokens"]
        whole = [i for i, step in enumerate(steps) if i < len(tokens) and step["id"] != tokens[i]]
        steps = steps[: whole[0]] if whole else steps
        ids_NK = torch.full((len(steps), num_top), -1)
        logprobs_NK = torch.full((len(steps), num_top), -torch.inf)
        for i, step in enumerate(steps):
            top = step["top_logprobs"]
            ids_NK[i, : len(top)] = torch.tensor([entry["id"] for entry in top])
            logprobs_NK[i, : len(top)] = torch.tensor([entry["logprob"] for entry in top])
        return Answer([step["id"] for step in steps], ids_NK, logprobs_NK)

    def close(self) -> None:
        """End the server."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._log):
            if pipe is not None:
                pipe.close()


def _quiet(environment: "os._Environ[str]") -> dict[str, str]:
    """Copy the environment, with threads that sleep where they wait: others compute meanwhile."""
    return {"OMP_WAIT_POLICY": "PASSIVE", **environment}
