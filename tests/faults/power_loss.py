"""The states that a loss of power may leave: kill -9 cannot show a missing fsync, since the system still writes.

A run's calls are recorded once. Then the power goes at a random call, and of what no fsync had forced to disk by then
any part may be there: single writes, single pages of them, single names in a directory. In each state the newest
checkpoint that had been promised (its directory was synced) or a newer one must be found, with exactly the bytes it
was written with; and going on from there must end bit-equal.
"""

import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from lorakeet.errors import LorakeetError
from lorakeet.rundir.checkpoint import load_newest, recorded_identity
from tests.faults.disk import Record, recorded
from tests.faults.runs import Outcome, World

_PAGE = 4096
_RESUMED = 10  # of so many states one is trained to its end


@dataclass
class File:
    """A file as the system sees it, and as it is on disk."""

    on_disk: bytes = b""
    unsynced: list[tuple[int, bytes]] = field(default_factory=list)

    def content(self) -> bytes:
        """Return what the system would read."""
        return _written(self.on_disk, self.unsynced)

    def after_loss(self, dice: random.Random) -> bytes:
        """Return what may be on disk: any pages of the writes that nobody forced there."""
        chance = dice.choice((0.0, 0.5, 1.0))
        pages = [
            (offset + at, data[at : at + _PAGE])
            for offset, data in self.unsynced
            for at in range(0, len(data), _PAGE)
            if dice.random() < chance
        ]
        return _written(self.on_disk, pages)


@dataclass
class Directory:
    """A directory as the system sees it, and as it is on disk."""

    names: dict[str, "File | Directory"] = field(default_factory=dict)
    on_disk: dict[str, "File | Directory"] = field(default_factory=dict)
    unsynced: list[tuple[str, str, "File | Directory | None"]] = field(default_factory=list)
    """Changes since: (name that goes, name that comes, what comes)."""

    def change(self, gone: str, come: str = "", what: "File | Directory | None" = None) -> None:
        """Remove a name, add one, or both in one step."""
        _apply(self.names, gone, come, what)
        self.unsynced.append((gone, come, what))

    def sync(self) -> None:
        """Force all names to disk."""
        self.on_disk, self.unsynced = dict(self.names), []

    def after_loss(self, dice: random.Random) -> dict[str, "File | Directory"]:
        """Return the names that may be on disk: a journal's beginning, or any of the changes."""
        changes = self.unsynced
        if dice.random() < 0.5:
            changes = changes[: dice.randint(0, len(changes))]
        else:
            chance = dice.random()
            changes = [change for change in changes if dice.random() < chance]
        left = dict(self.on_disk)
        for change in changes:
            _apply(left, *change)
        return left


def _written(content: bytes, writes: list[tuple[int, bytes]]) -> bytes:
    result = bytearray(content)
    for offset, data in writes:
        result.extend(bytes(max(0, offset + len(data) - len(result))))
        result[offset : offset + len(data)] = data
    return bytes(result)


def _apply(names: dict[str, "File | Directory"], gone: str, come: str, what: "File | Directory | None") -> None:
    names.pop(gone, None)
    if what is not None:
        names[come] = what


class Disk:
    """A run's directory, rebuilt call by call."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.tree = Directory()
        self.promised: dict[int, dict[str, bytes]] = {}
        """The files of every checkpoint whose directory's name is on disk for certain."""

    def apply(self, call: tuple) -> None:
        """Let one recorded call happen."""
        name, path, target, *written = call
        parent, leaf = self._parent(path)
        if name == "open":
            if leaf not in parent.names:
                parent.change("", leaf, File())
        elif name == "mkdir":
            if leaf:  # the run's own directory is there from the start
                parent.change("", leaf, Directory())
        elif name == "pwrite":
            parent.names[leaf].unsynced.append((written[1], written[0]))
        elif name == "fsync":
            self._sync(parent.names[leaf] if leaf else self.tree, written)
        elif name in ("rename", "replace"):
            self._rename(parent, leaf, target)
        else:
            parent.change(leaf)

    def _sync(self, what: File | Directory, written: list[bytes]) -> None:
        if isinstance(what, File):
            what.on_disk, what.unsynced = written[0], []
            return
        what.sync()
        if what is self.tree.names.get("checkpoints"):
            self.promised = {
                int(name.removeprefix("step-")): {leaf: file.content() for leaf, file in step.names.items()}
                for name, step in what.names.items()
                if name.startswith("step-")
            }

    def _rename(self, parent: Directory, leaf: str, target: str) -> None:
        target_parent, target_leaf = self._parent(target)
        assert target_parent is parent, "a run renames within one directory"
        parent.change(leaf, target_leaf, parent.names[leaf])

    def _parent(self, path: str) -> tuple[Directory, str]:
        parts = Path(path).relative_to(self.root).parts
        directory = self.tree
        for part in parts[:-1]:
            directory = directory.names[part]
        return directory, parts[-1] if parts else ""

    def lose_power(self, into: Path, dice: random.Random) -> None:
        """Write one state that may be left."""
        _write_out(self.tree, into, dice)


def _write_out(directory: Directory, into: Path, dice: random.Random) -> None:
    into.mkdir()
    for name, what in directory.after_loss(dice).items():
        if isinstance(what, Directory):
            _write_out(what, into / name, dice)
        else:
            (into / name).write_bytes(what.after_loss(dice))


def campaign(world: World, num: int, seed: int = 0) -> Outcome:
    """Lose power `num` times."""
    outcome, dice = Outcome("loss of power"), random.Random(seed)
    run, tape = world.root / "recorded", world.root / "tape"
    child = world.start(run, Record(run, tape))
    assert child.wait() == 0, child.stderr
    identity, calls = recorded_identity(run), recorded(tape)
    shutil.rmtree(run)
    moments = sorted(dice.randint(0, len(calls)) for _ in range(num))
    disk, done, resumed = Disk(run), 0, 0
    for case, moment in enumerate(moments):
        for call in calls[done:moment]:
            disk.apply(call)
        done = max(done, moment)
        disk.lose_power(run, dice)
        outcome.num_cases += 1
        wrong = _wrong_checkpoint(disk, run, identity)
        if not wrong and case % _RESUMED == 0:
            resumed += 1
            wrong = world.finish(run)
        if wrong:
            outcome.misses.append(f"state {case}, after call {moment}: {wrong}")
        shutil.rmtree(run)
    outcome.note = f"{len(calls)} calls recorded; {resumed} states trained to their end"
    return outcome


def _wrong_checkpoint(disk: Disk, run: Path, identity: dict[str, str]) -> str:
    """Say what is wrong with the checkpoint that is found in a state."""
    newest_promised = max(disk.promised, default=0)
    try:
        found = load_newest(run, identity, lambda text: None)
    except LorakeetError as error:
        return "" if not newest_promised else f"step {newest_promised} was promised, yet: {error}"
    if found is None:
        return "" if not newest_promised else f"step {newest_promised} was promised, and nothing is there"
    step = int(found[0].name.removeprefix("step-"))
    if step < newest_promised:
        return f"step {newest_promised} was promised, and only {step} is there"
    cached = disk.tree.names["checkpoints"].names.get(found[0].name)
    truth = {leaf: file.content() for leaf, file in cached.names.items()} if cached else disk.promised.get(step)
    if truth is None or any((found[0] / leaf).read_bytes() != content for leaf, content in truth.items()):
        return f"step {step} was accepted with other bytes than were written"
    return ""
