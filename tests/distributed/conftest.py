"""Starting processes as torchrun does."""

import json
import os
import subprocess
import sys

import pytest

from tests.cli.conftest import tiny_model_directory  # noqa: F401  a fixture


@pytest.fixture(scope="session")
def torchrun():
    def start(*arguments, nproc=2, cwd=None, **environment):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(nproc)]
        settings = {"OMP_NUM_THREADS": "1", "LORAKEET_COMPILE": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
        return subprocess.Popen(
            [*command, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=cwd,
            env=os.environ | settings | environment,
        )

    return start


@pytest.fixture(scope="session")
def run_to_end(torchrun):
    def run(*arguments, **options):
        process = torchrun(*arguments, **options)
        try:
            out, err = process.communicate(timeout=90)
        finally:
            process.kill()
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    return run


@pytest.fixture(scope="module")
def sums(tmp_path_factory):
    """Rows to train on, and a cache of the tests' own."""
    directory = tmp_path_factory.mktemp("sums")
    rows = [{"question": f"What is {i} plus 1?", "answer": str(i + 1)} for i in range(30)]
    (directory / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORAKEET_CACHE", str(directory / "cache"))
        patch.setenv("LORAKEET_COMPILE", "0")
        yield directory / "sums.jsonl"
