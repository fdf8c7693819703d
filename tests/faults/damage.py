"""Every file of a checkpoint cut and flipped: the damage is found, the file is named, and the one before is used."""

import random
import shutil
from pathlib import Path

from lorakeet.rundir.checkpoint import checkpoints, load_newest, recorded_identity
from tests.faults.runs import Outcome, World


def campaign(world: World, num: int, seed: int = 0) -> Outcome:
    """Damage `num` times one file of the newest of two checkpoints."""
    outcome, dice = Outcome("a file of a checkpoint cut or flipped"), random.Random(seed)
    run = world.root / "damaged"
    shutil.copytree(world.straight, run)
    newest, before = checkpoints(run)
    identity = recorded_identity(run)
    files = sorted(newest.iterdir())
    for case in range(num):
        file = files[case % len(files)]
        content = file.read_bytes()
        damage = _damage(file, content, dice)
        notes: list[str] = []
        found = load_newest(run, identity, notes.append)
        file.write_bytes(content)
        outcome.num_cases += 1
        skipped = [note for note in notes if note.endswith("Skipping it.")]
        if found is None or found[0] != before or len(skipped) != 1 or str(file) not in skipped[0]:
            outcome.misses.append(f"{file.name} {damage}: found {found and found[0].name}, said {notes}")
    shutil.rmtree(run)
    return outcome


def _damage(file: Path, content: bytes, dice: random.Random) -> str:
    """Cut a file, or flip one to three of its bits."""
    if dice.random() < 0.5:
        size = dice.choice((0, len(content) - 1, dice.randrange(len(content))))
        file.write_bytes(content[:size])
        return f"cut to {size} bytes"
    changed = bytearray(content)
    bits = dice.sample(range(8 * len(content)), dice.randint(1, 3))
    for bit in bits:
        changed[bit // 8] ^= 1 << bit % 8
    file.write_bytes(changed)
    return f"flipped bits {bits}"
