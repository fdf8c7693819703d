"""The child process of jinja.py: renders one chat template in transformers' sandbox, and nothing else.

data in: JSON lines on stdin (first the template, then requests) → out: JSON lines on stdout. It limits its own
memory and processor time; the parent limits the time of each request.
"""

import json
import sys
from typing import Any

_EXTRA_BYTES = 1 << 30


def main() -> None:
    """Serve until stdin ends."""
    setup = json.loads(sys.stdin.readline())
    try:
        from transformers.utils.chat_template_utils import render_jinja_template

        _limit_memory()
    except Exception as error:  # whatever it is, the parent must know of it
        _reply({"error": f"{type(error).__name__}: {error}"})
        return
    _reply({})
    for line in sys.stdin:
        try:
            _reply(_render(render_jinja_template, setup, json.loads(line)))
        except MemoryError:
            _reply({"hostile": "needs too much memory"})
        except Exception as error:  # templates may raise anything; the parent words it for the user
            _reply({"error": f"{type(error).__name__}: {error}"[:1000]})


def _render(render: Any, setup: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
    texts: list[str] = []
    size = 0
    for count, add_generation_prompt in request["wanted"]:
        rendered, _ = render(
            conversations=[request["messages"][:count]],
            tools=request["tools"],
            chat_template=setup["chat_template"],
            add_generation_prompt=add_generation_prompt,
            **setup["names"],
        )
        size += len(rendered[0])
        if size > setup["max_chars"]:
            return {"hostile": f"writes more than {setup['max_chars']} characters for one row"}
        texts.append(rendered[0])
    return {"texts": texts}


def _limit_memory() -> None:
    """Allow this process 1 GiB more than it has now."""
    try:
        import resource

        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
    except (ImportError, OSError):  # only on Linux; the time limit holds everywhere
        return
    resource.setrlimit(resource.RLIMIT_AS, (now + _EXTRA_BYTES, now + _EXTRA_BYTES))


def _reply(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
