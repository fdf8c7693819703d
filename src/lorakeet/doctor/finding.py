"""One thing that was found out, and what to do about it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

State = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Finding:
    """A value with its name, how it is shown, and one step to take if there is one."""

    group: str
    name: str
    value: Any
    """What `--json` prints: a number in bytes, seconds or GFLOP/s, a text, or None."""
    text: str
    state: State = "ok"
    """`note`: works, but could be better; `problem`: something will not work."""
    fix: str = ""


def to_dict(findings: Iterable[Finding]) -> dict[str, Any]:
    """Return values by group and name, and the steps to take as a list, problems first."""
    groups: dict[str, Any] = {}
    for one in findings:
        groups.setdefault(one.group, {})[one.name] = one.value
    return groups | {"advice": [{"state": one.state, "about": one.text, "fix": one.fix} for one in advice(findings)]}


def advice(findings: Iterable[Finding]) -> list[Finding]:
    """Return the findings that name a step to take, problems first."""
    return sorted((one for one in findings if one.fix), key=lambda one: one.state != "problem")
