"""In what runs differ: configuration, data and base model, versions, and the step from which their numbers part.

data in: runs, or their configurations → out: Difference. Two runs with the same configuration, data, base model and
versions, on one kind of machine, are equal to the bit; if their numbers part all the same, something is not as it seems.
"""

from dataclasses import dataclass
from typing import Any

from lorakeet.formatting import count
from lorakeet.reports.reported_run import ReportedRun, Row
from lorakeet.rundir.provenance import NUMBERS


@dataclass(frozen=True)
class Difference:
    """In what two runs differ."""

    config: list[tuple[str, list[str]]]
    """Keys with both values, in words."""
    identity: list[str]
    """What of data and base model differs, by its hash."""
    versions: list[tuple[str, list[str]]]
    num_shared_steps: int
    """Steps that both have logged."""
    parting: tuple[int, str, Any, Any] | None
    """The first logged step at which a number differs: (step, its name, both values); None if there is none."""

    @property
    def is_none(self) -> bool:
        """Whether nothing differs."""
        return not (self.config or self.identity or self.versions or self.parting)


def compare_runs(first: ReportedRun, second: ReportedRun) -> Difference:
    """Compare two runs by what their directories say."""
    one, other = ({row["step"]: row for row in run.steps} for run in (first, second))
    shared = sorted(one.keys() & other.keys())
    return Difference(
        config=differing_keys([first.config, second.config]),
        identity=_differing_identity(first.identity, second.identity),
        versions=differing_keys([{"versions": first.versions}, {"versions": second.versions}]),
        num_shared_steps=len(shared),
        parting=next((found for step in shared if (found := _parting(step, one[step], other[step]))), None),
    )


def _differing_identity(first: dict[str, str], second: dict[str, str]) -> list[str]:
    """List what differs of data, base model and size of a step; the keys of the configuration, with a dot, are not meant."""
    names = dict.fromkeys([*first, *second])
    return [name for name in names if "." not in name and first.get(name) != second.get(name)]


def _parting(step: int, one: Row, other: Row) -> tuple[int, str, Any, Any] | None:
    name = next((name for name in NUMBERS if one.get(name) != other.get(name)), None)
    return None if name is None else (step, name, one.get(name), other.get(name))


def describe(difference: Difference, names: tuple[str, str]) -> list[str]:
    """Return what differs, a line each."""
    lines = [f"{key}: {values[0]} in {names[0]}, {values[1]} in {names[1]}" for key, values in difference.config]
    lines += [f"{what} differs" for what in difference.identity]
    lines += [f"{key}: {values[0]}, then {values[1]}" for key, values in difference.versions]
    if difference.parting is not None:
        step, name, one, other = difference.parting
        lines.append(f"The numbers part at step {step}: {name.replace('_', ' ')} {one:.6g} and {other:.6g}.")
    elif difference.num_shared_steps:
        steps = count(difference.num_shared_steps, "step")
        lines.append(f"Loss, gradient norm and tokens are equal to the bit at {steps} that both have logged.")
    else:
        lines.append("No step was logged by both.")
    return lines


def sections(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Split a configuration into its sections; what stands alone comes first."""
    alone = {key: value for key, value in config.items() if not isinstance(value, dict)}
    return {"run": alone} | {key: value for key, value in config.items() if isinstance(value, dict)}


def flat(section: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the keys of a section with their values in words."""
    return [(key, _written(value)) for key, value in section.items()]


def _written(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "not set" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def differing_keys(configs: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """List the keys in which configurations differ, each with its value in every one."""
    written = [
        {
            key if name == "run" else f"{name}.{key}": value
            for name, section in sections(config).items()
            for key, value in flat(section)
        }
        for config in configs
    ]
    names = dict.fromkeys(name for one in written for name in one)
    rows = [(name, [one.get(name, "not set") for one in written]) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1]
