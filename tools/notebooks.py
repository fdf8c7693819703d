"""Run the notebooks and keep their outputs: `python -m tools.notebooks` for all, or with names; --to DIR keeps them elsewhere.

data in: notebooks/*.ipynb → out: the same with fresh outputs. Cells with the tag `same` print what every run prints alike;
a test compares them with what is kept. Notebooks run in a folder of their own.
"""

import argparse
import os
import tempfile
from pathlib import Path

import nbformat
from jupyter_client import AsyncKernelManager
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
LONGEST_CELL_S = 1200


def run(notebook: Path) -> nbformat.NotebookNode:
    """Execute a notebook in a new folder and return it with its outputs, without times and other noise."""
    node = nbformat.read(notebook, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        # Kernel and client speak through sockets in that folder, not through open ports.
        kernel = AsyncKernelManager(kernel_name="python3", transport="ipc", ip=f"{folder}/kernel")
        place = {"metadata": {"path": folder}}
        NotebookClient(node, km=kernel, timeout=LONGEST_CELL_S, startup_timeout=300, resources=place).execute()
    for cell in node.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            # Progress on stderr is for those who wait; kept, it would change with every run.
            cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]
    return node


def main() -> None:
    """Run what is named on the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*")
    parser.add_argument("--to", type=Path, default=ROOT / "notebooks")
    arguments = parser.parse_args()
    os.environ["PYTHONPATH"] = str(ROOT / "src")  # the kernel inherits it
    for name in arguments.names or sorted(file.stem for file in (ROOT / "notebooks").glob("*.ipynb")):
        nbformat.write(run(ROOT / "notebooks" / f"{name}.ipynb"), arguments.to / f"{name}.ipynb")


if __name__ == "__main__":
    main()
