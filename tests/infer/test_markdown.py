"""Markdown while it is being written: what is printed in the end is the whole text, however it came."""

import io

import pytest
from rich.console import Console

from lorakeet.infer.markdown import last_block, shown_markdown

TEXT = """# Title

First line
second line with `code` and a <b> tag.

- one
- two

  still two

| a | b |
|---|---|
| 1 | 2 |

```python
def f():

    return 1
```
The end\x1b[31m"""


def shown(text, size, width=60, height=25):
    console = Console(file=io.StringIO(), force_terminal=True, width=width, height=height, color_system=None, highlight=False)
    with shown_markdown(console) as write:
        for at in range(0, len(text), size):
            write(text[at : at + size])
    return console.file.getvalue()


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_pieces_of_any_size_print_one_text(size):
    output = shown(TEXT, size)
    final = output[output.rfind("The end") :]
    assert "␛[31m" in final
    whole = shown(TEXT, len(TEXT))
    for line in ("First line", "second line with code and a <b> tag.", " • one", "return 1"):
        assert line in whole
        assert line in output


def test_blocks_are_found_where_nothing_will_change_any_more():
    for end in range(1, len(TEXT)):
        at = last_block(TEXT[:end])
        assert TEXT[:at] == "" or TEXT[:at].endswith("\n")
        assert at <= last_block(TEXT[: end + 1]) or TEXT[end] == "\n"
    assert TEXT[last_block(TEXT) :].startswith("The end")
    assert last_block("a\nb") == last_block("- a\n- b") == last_block("") == 0


def test_a_block_higher_than_the_terminal_is_printed_whole():
    text = "\n".join(f"line {i}" for i in range(40))
    output = shown(text, 5, height=10)
    final = output[output.rfind("line 0\n") if "line 0\n" in output else output.rfind("line 0 ") :]
    assert [f"line {i}" in final for i in range(40)] == [True] * 40
