"""The child process of jinja.py: renders chat templates in transformers' sandbox, and nothing else.

data in: JSON lines on stdin (first the limit, then requests) → out: JSON lines on stdout. It limits its own
memory and processor time; the parent limits the time of each request.
"""

import json
import sys
from datetime import datetime
from typing import Any

_EXTRA_BYTES = 1 << 30


def main() -> None:
    """Serve until stdin ends."""
    setup = json.loads(sys.stdin.readline())
    try:
        from transformers.utils import chat_template_utils

        _limit_memory()
    except Exception as error:  # whatever it is, the parent must know of it
        _reply({"error": f"{type(error).__name__}: {error}"})
        return
    _reply({})
    for line in sys.stdin:
        try:
            request = json.loads(line)
            vars(chat_template_utils)["datetime"] = on_day(request["day"])  # which strftime_now asks for the time
            _reply(_render(chat_template_utils.render_jinja_template, setup, request))
        except MemoryError:
            _reply({"hostile": "needs too much memory"})
        except Exception as error:  # templates may raise anything; the parent words it for the user
            _reply({"error": f"{type(error).__name__}: {error}"[:1000]})


def on_day(day: str) -> type[datetime]:
    """Return a class of datetime for which it is always that day."""

    class OnDay(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> "OnDay":
            return cls.fromisoformat(day)

    return OnDay


def _render(render: Any, setup: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
    texts: list[str] = []
    size = 0
    for count, add_generation_prompt in request["wanted"]:
        rendered, _ = render(
            conversations=[request["messages"][:count]],
            tools=request["tools"],
            chat_template=request["chat_template"],
            add_generation_prompt=add_generation_prompt,
            **request["names"],
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
