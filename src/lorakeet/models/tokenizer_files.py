"""The small files beside a model's weights that whoever uses the model needs too."""

from pathlib import Path

from lorakeet.files.durable import write_file

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy a model directory's tokenizer files into `target`."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            write_file(target / name, (source / name).read_bytes())
