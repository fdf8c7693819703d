"""The small files beside a model's weights that whoever uses the model needs too.

data in: a model directory → out: its tokenizer files in another one, in a form that every version of transformers reads.
"""

import json
from pathlib import Path
from typing import Any

from lorakeet.files.durable import write_file

TEMPLATE_FILE = "chat_template.jinja"
"""It takes precedence over a template in tokenizer_config.json."""
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    TEMPLATE_FILE,
)
CONFIG_FILE = "tokenizer_config.json"
_ONLY_IN_5 = ("TokenizersBackend", "SentencePieceBackend", "PythonBackend", None)
"""Classes that transformers 4 and vLLM do not know; None is worse: they then guess a class by the model's type."""


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy a model directory's tokenizer files into `target`, named by a class that transformers 4 knows too."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            data = (source / name).read_bytes()
            write_file(target / name, _readable_everywhere(data, source) if name == CONFIG_FILE else data)


def _readable_everywhere(data: bytes, source: Path) -> bytes:
    """Rewrite what only transformers 5 understands; a file that needs nothing keeps its bytes."""
    config: dict[str, Any] = json.loads(data)
    changes: dict[str, Any] = {}
    if config.get("tokenizer_class") in _ONLY_IN_5 and (source / "tokenizer.json").is_file():
        changes["tokenizer_class"] = "PreTrainedTokenizerFast"
    extra = config.get("extra_special_tokens")
    if isinstance(extra, list):  # an older version wants names there
        changes |= {"extra_special_tokens": {}, "additional_special_tokens": extra}
    return (json.dumps({**config, **changes}, indent=2, ensure_ascii=False) + "\n").encode() if changes else data
