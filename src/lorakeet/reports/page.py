"""The one way to write HTML: Jinja templates in files, one style sheet, one self-contained page.

data in: the name of a template and plain values → out: the text of an HTML page that loads nothing. Values are escaped
by the templates' engine; scripts run only if their hash stands in the page's own policy, so that nothing a row says
can become code.
"""

import base64
import functools
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorakeet.errors import ConfigError
from lorakeet.files import durable
from lorakeet.formatting import difference, duration, size

if TYPE_CHECKING:
    import jinja2

TEMPLATES = Path(__file__).parent / "templates"
GENERATOR = '<meta name="generator" content="lorakeet">'
"""Stands near the beginning of every page, and distinguishes a page of ours from another file."""


def render(template: str, *, scripts: tuple[str, ...] = (), data: Any = None, live: bool = False, **values: Any) -> str:
    """Render a page.

    Args:
        template: file name under `templates/`.
        scripts: file names of the scripts to pack in, in the order in which they run.
        data: JSON values for the scripts, who find them in the element "data".
        live: allow the page to ask the server it came from for a newer version of itself.
        values: what the template shows.
    """
    sources = [(TEMPLATES / name).read_text(encoding="utf-8") for name in scripts]
    return (
        _environment()
        .get_template(template)
        .render(
            policy=_policy(sources, live=live),
            style="\n".join((TEMPLATES / name).read_text(encoding="utf-8") for name in ("uplot.min.css", "style.css")),
            scripts=sources,
            data=json_for_html(data),
            live=live,
            **values,
        )
    )


def write_page(path: Path, text: str) -> None:
    """Write a page in one go.

    Raises: ConfigError E-CFG-250 if a file is there that is no page of ours, E-CFG-46 if it cannot be written.
    """
    if path.exists() and not _is_page(path):
        raise ConfigError(
            "E-CFG-250", "exists and is no page of lorakeet's", place=str(path), fix="Choose another file with -o"
        )
    with durable.writing(path):
        durable.write_file(path, text.encode())


def _is_page(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return GENERATOR.encode() in file.read(1024)


def json_for_html(data: Any) -> str:
    """Write JSON that may stand in a script element: no "<" that could end it."""
    return json.dumps(data, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")


def visible(text: str) -> str:
    """Spell out what would hide text or turn its direction; line breaks and tabs stay."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in "\n\t" else f"\\u{ord(char):04x}" for char in text)


def shortened(text: str, longest: int = 2000) -> str:
    """Cut a long text, saying how long it is."""
    return text if len(text) <= longest else f"{text[:longest]} … ({len(text):,} characters)"


def _policy(scripts: list[str], *, live: bool) -> str:
    hashes = (base64.b64encode(hashlib.sha256(source.encode()).digest()).decode() for source in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes) or "'none'"
    connect = "; connect-src 'self'" if live else ""
    return f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src {allowed}{connect}"


@functools.cache
def _environment() -> "jinja2.Environment":
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"visible": visible, "shortened": shortened, **_UNITS}
    return environment


_UNITS = {"bytes": size, "duration": duration, "difference": difference, "whole": lambda number: f"{number:,.0f}"}
