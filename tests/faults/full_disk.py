"""A disk that is really full: a tmpfs of many sizes. Mounting needs root; elsewhere this part is skipped."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.faults.each_call import wrong_ending
from tests.faults.runs import Outcome, World


def campaign(world: World, num: int) -> Outcome:
    """Train on `num` disks too small by various amounts, each time with and without the look at the free space."""
    outcome = Outcome("a full disk (tmpfs)")
    needed = sum(file.stat().st_size for file in world.straight.rglob("*") if file.is_file())
    for case in range(num):
        size = round(needed * (0.1 + 1.3 * case / max(1, num - 1)))
        for patch in (None, WithoutLooking()):
            mount = world.root / f"disk-{case}-{patch is None}"
            mount.mkdir()
            if not _mounted(mount, size):
                outcome.note = "skipped: a tmpfs cannot be mounted here (not root)"
                return outcome
            try:
                outcome.num_cases += 1
                child = world.start(mount / "run", patch)
                wrong = wrong_ending(child.wait(), child.stderr, mount / "run", world)
                subprocess.run(["mount", "-o", "remount,size=256m", mount], check=True)
                wrong = wrong or world.finish(mount / "run")
                if wrong:
                    outcome.misses.append(f"{size} bytes: {wrong}")
            finally:
                subprocess.run(["umount", mount], check=True)
    return outcome


def _mounted(mount: Path, size: int) -> bool:
    if shutil.which("mount") is None:
        return False
    command = ["mount", "-t", "tmpfs", "-o", f"size={max(4096, size)}", "tmpfs", mount]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@dataclass(frozen=True)
class WithoutLooking:
    """Write without asking first how much room there is, so that the disk fills up in the middle of a file."""

    def __call__(self) -> None:
        from lorakeet.files import durable

        durable.require_space = lambda directory, num_bytes: None
