"""What mkdocs does besides: pages written from the code, and files that lie outside docs/.

data in: mkdocs' files and pages → out: the same, with commands.md and keys.md, with every file outside docs/ that a page
links to under project/, and with llms.txt at the root of the site. Called by mkdocs alone (mkdocs.yml, `hooks`).
"""

import re
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # mkdocs runs a hook as a file without a package

from tools import reference  # noqa: E402

OUTSIDE = re.compile(r"\]\((?:\.\./)+((?:benchmarks|examples|configs|notebooks)/[^)#\s]+|[A-Z]+\.md|AGENTS\.md)(#[^)\s]*)?\)")
ALWAYS = ("CONTRIBUTING.md", "CHANGELOG.md", "README.md")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the written pages and the files outside docs/ that pages link to."""
    for name, write in (("commands.md", reference.commands_page), ("keys.md", reference.keys_page)):
        files.append(File.generated(config, name, content=write()))
    files.append(File.generated(config, "llms.txt", content=(ROOT / "llms.txt").read_text(encoding="utf-8")))
    linked = {
        found[1] for page in files.documentation_pages() if page.abs_src_path for found in OUTSIDE.finditer(page.content_string)
    }
    for path in sorted({*ALWAYS, *linked}):
        if (ROOT / path).is_file():
            files.append(File.generated(config, f"project/{path}", abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links to files outside docs/ lead to their copies under project/, and those of copies lead back to docs/."""
    here = page.file.src_uri
    if here.startswith("project/"):
        up = "../" * (here.count("/"))
        return re.sub(r"\]\((?!https?:|#)(?:\.\./)*docs/", f"]({up}", markdown)
    up = "../" * here.count("/")
    return OUTSIDE.sub(lambda found: f"]({up}project/{found[1]}{found[2] or ''})", markdown)
