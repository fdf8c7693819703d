"""A folder for `ollama create`: a GGUF file and a Modelfile that names template, stops, system prompt and context.

data in: a run → out: Modelfile and NAME-TYPE.gguf; with `adapter`, the base's GGUF and the adapter's. Ollama renders with
its own template language and never looks at the Jinja in the file, so the run's template is written in Go; the gate
renders that, and lets llama.cpp, which Ollama runs, do the rest. Ollama itself is not asked.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from lorakeet.data.conversation import Conversation
from lorakeet.data.templates.layout import Layout
from lorakeet.errors import ExportError
from lorakeet.exports import gguf_adapter, gguf_model
from lorakeet.exports.artefact import Answer, Format, Missing, Options, Reader, Source, Written
from lorakeet.exports.gguf_file import TYPES
from lorakeet.exports.go_template import go_text, render_go
from lorakeet.exports.llama_cpp import LlamaCppReader, read_gguf
from lorakeet.files.durable import write_file
from lorakeet.models import weights

MODELFILE = "Modelfile"
_QUOTES = '"""'
_NOTES = (
    "Ollama itself was not asked: its template was rendered here as its documentation says, the rest is llama.cpp's.",
    "Ollama joins neighbouring messages of the same role; training did not.",
)
_ADAPTER_NOTE = "ADAPTER: Ollama 0.34.1 and later are reported to reject every one; leave --with-adapter out for those."


def write(source: Source, directory: Path, options: Options) -> Written:
    """Write the model and its Modelfile."""
    layout = source.template
    if not isinstance(layout, Layout):
        raise ExportError(
            "E-EXP-204",
            f"the chat template ({layout.name}) cannot be said in Ollama's language",
            place=source.tokenizer.place,
            fix="Train with a template named by --template, or export with --format gguf",
        )
    template = go_text(layout)
    written = (
        _write_with_adapter(source, directory, options) if options.adapter else gguf_model.write(source, directory, options)
    )
    system = source.system if source.system is not None else layout.default_system
    lines = [f"FROM ./{_single(directory, 'base.gguf' if options.adapter else '*.gguf').name}"]
    lines += [f"ADAPTER ./{_single(directory, '*-lora-*.gguf').name}"] if options.adapter else []
    lines += [f"TEMPLATE {_quoted(template, 'the chat template')}"]
    lines += [f"SYSTEM {_quoted(system, 'the system prompt')}"] if system and "system" in layout.roles else []
    lines += [f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stop_texts(source)]
    lines += [f"PARAMETER num_ctx {gguf_model.context_to_ask_for(source.config)}"]
    write_file(directory / MODELFILE, ("\n".join(lines) + "\n").encode())
    name = re.sub(r"[^a-z0-9._-]", "-", source.name.lower()) or "tuned"
    notes = (*gguf_model.notes(source.config), *_NOTES, *((_ADAPTER_NOTE,) if options.adapter else ()))
    commands = (f"ollama create {name} -f {{path}}/{MODELFILE} && ollama run {name}",)
    return Written(written.dtype, commands, notes, written.limits)


def _write_with_adapter(source: Source, directory: Path, options: Options) -> Written:
    """Write the base model and the adapter apart; the type is the base's."""
    gguf_adapter.write(source, directory, Options())
    model = weights.outline(source.base)
    dtype = options.dtype or gguf_model.base_type(model)
    gguf_model.write_model(source, model, directory / "base.gguf", dtype)
    return Written(dtype, limits=gguf_model.limits(source.config, dtype))


def stop_texts(source: Source) -> list[str]:
    """Return the text of every token that ends an answer."""
    texts = (source.tokenizer.full.id_to_token(stop) for stop in sorted(source.tokenizer.stop_ids))
    return [text for text in texts if text is not None]


def _quoted(text: str, what: str) -> str:
    if _QUOTES in text:
        raise ExportError("E-EXP-204", f"{what} holds {_QUOTES}, which ends a text in a Modelfile", fix="Write it otherwise")
    return f"{_QUOTES}{text}{_QUOTES}"


def _single(directory: Path, pattern: str) -> Path:
    (file,) = directory.glob(pattern)
    return file


class OllamaReader:
    """A Modelfile's folder: prompts by its template, tokens and answers by llama.cpp."""

    def __init__(self, modelfile: str, server: LlamaCppReader, source: Source) -> None:
        self.consumer = f"{server.consumer}, with Ollama's template"
        self._server, self._source = server, source
        self._template = read_instruction(modelfile, "TEMPLATE")
        self._stops = [json.loads(stop) for stop in re.findall(r"^PARAMETER stop (.*)$", modelfile, re.MULTILINE)]

    def prompt_ids(self, conversation: Conversation) -> list[int]:
        """Render with the Modelfile's template, and let llama.cpp tokenise."""
        return self._server.ids_of_text(render_go(self._template, conversation))

    def ends_at(self, token_id: int) -> bool:
        """Look for a stop of the Modelfile, or ask llama.cpp."""
        return self._source.tokenizer.full.id_to_token(token_id) in self._stops or self._server.ends_at(token_id)

    def answer(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> list[Answer]:
        """Let llama.cpp answer."""
        return self._server.answer(prompts, num_tokens)

    def close(self) -> None:
        """End llama.cpp."""
        self._server.close()


def read_instruction(modelfile: str, name: str) -> str:
    """Return the text in triple quotes behind an instruction, or "" if it is not there."""
    found = re.search(rf'^{name} """(.*?)"""$', modelfile, re.MULTILINE | re.DOTALL)
    return found[1] if found else ""


def read(source: Source, directory: Path) -> Reader | Missing:
    """Load what the Modelfile names."""
    modelfile = (directory / MODELFILE).read_text(encoding="utf-8")
    files = dict(re.findall(r"^(FROM|ADAPTER) \./(.*)$", modelfile, re.MULTILINE))
    lora = directory / files["ADAPTER"] if "ADAPTER" in files else None
    server = read_gguf(directory / files["FROM"], source.config, lora)
    return OllamaReader(modelfile, server, source) if isinstance(server, LlamaCppReader) else server


FORMAT = Format("ollama", "a folder for `ollama create`", tuple(TYPES), write, read)
