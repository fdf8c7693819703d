"""Every notebook runs on the demo model, and what does not vary comes out as it is kept."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")

ROOT = Path(__file__).parents[2]
NAMES = sorted(file.stem for file in (ROOT / "notebooks").glob("*.ipynb"))


def code_cells(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def texts(cell):
    """Return what a cell printed and the plain text of what it shows."""
    return [one.get("text") or one["data"].get("text/plain") for one in cell.outputs]


def kinds(cell):
    """Return the kinds of what a cell shows: printed text, a table, a picture; how many lines of progress is left out."""
    return {one["output_type"] if "data" not in one else " ".join(sorted(one["data"])) for one in cell.outputs}


def test_there_are_four_notebooks_with_their_outputs():
    assert NAMES == ["loralib_layers", "phi3_inference_finetuning", "phi3_lora", "phi3_qlora"]
    for name in NAMES:
        path = ROOT / "notebooks" / f"{name}.ipynb"
        assert path.stat().st_size < 500_000
        cells = code_cells(path)
        assert any(cell.outputs for cell in cells)
        assert all(cell.execution_count for cell in cells)
        if name.startswith("phi3"):
            assert 'MODEL, DATA, STEPS = "demo", "demo"' in cells[0].source
            assert any("text/html" in kind for cell in cells for kind in kinds(cell))


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_and_what_does_not_vary_is_as_kept(name, tmp_path):
    environment = {
        **os.environ,
        "LORAKEET_COMPILE": "0",
        "PYTHONPATH": str(ROOT / "src"),
        "IPYTHONDIR": str(tmp_path / "ipython"),
    }
    command = [sys.executable, "-m", "tools.notebooks", name, "--to", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    kept, fresh = (code_cells(folder / f"{name}.ipynb") for folder in (ROOT / "notebooks", tmp_path))
    for before, after in zip(kept, fresh, strict=True):
        assert kinds(after) == kinds(before), after.source
        if "same" in before.metadata.get("tags", []):
            assert texts(after) == texts(before), after.source
