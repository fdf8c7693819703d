"""YAML, read strictly: no duplicate keys, aliases or tags, and numbers as people write them.

data in: a file or a text → out: plain dictionaries, lists, words and numbers. It knows no key of ours.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from lorakeet.errors import ConfigError


class _StrictLoader(yaml.SafeLoader):
    """YAML without duplicate keys, aliases or tags, that reads 2e-4 as a number."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise ConfigError("E-CFG-34", "aliases and anchors are forbidden", place=f"{self.name}:{line}")
        if getattr(event, "tag", None) not in (None, "!"):
            raise ConfigError("E-CFG-33", f"tags are forbidden, found {event.tag}", place=f"{self.name}:{line}")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        lines: dict[Any, int] = {}
        for key_node, _ in node.value:
            key, line = key_node.value, key_node.start_mark.line + 1
            if key in lines:
                raise ConfigError(
                    "E-CFG-32", f'key "{key}" is repeated, first on line {lines[key]}', place=f"{self.name}:{line}"
                )
            lines[key] = line
        return super().construct_mapping(node, deep)


# YAML 1.1 takes no, off and yes for truth values; here only true and false are, and eval_strategy: no means "no".
_BOOL = "tag:yaml.org,2002:bool"
_StrictLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOL]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_StrictLoader.add_implicit_resolver(_BOOL, re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
# YAML 1.1 wants a dot and a sign in an exponent; people write 2e-4 and mean the number.
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def load_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping strictly: no duplicate keys, tags or aliases."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError("E-CFG-100", "no such file", place=str(path), fix="Check --config") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("E-CFG-101", f"cannot be read: {error}", place=str(path)) from None
    return parse_yaml(text, str(path), dict)


def parse_yaml(text: str, name: str, kind: type) -> Any:
    """Read a YAML text; `name` is the place that complaints give."""
    loader = _StrictLoader(text)
    loader.name = name
    try:
        value = loader.get_single_data()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{name}:{mark.line + 1}" if mark else name
        raise ConfigError("E-CFG-102", f"not valid YAML: {getattr(error, 'problem', error)}", place=place) from None
    finally:
        loader.dispose()
    if not isinstance(value, kind):
        raise ConfigError("E-CFG-103", f"expected keys and values, found {type(value).__name__}", place=name)
    return value
