"""`make ledger`: do the losses of single rows find the wrong ones? Train the demo's model on rows of which 5 % are wrong.

    python -m tests.reports.corrupted_rows [--rows 800] [--epochs 2]

data in: the demo's training rows, of which every twentieth gets the answer of another one → out: which share of the wrong
rows stands among the tenth with the highest loss in the last epoch; exit status 1 if it is below 80 %.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import lorakeet
from lorakeet.data.prepare import demo_rows
from lorakeet.demo_task.recipe import PEFT_RECIPE, RECIPE
from lorakeet.reports.ledger import Ledger
from lorakeet.rundir.row_ledger import FILE

WANTED = 0.8


def corrupted(count: int) -> tuple[list[dict], set[int]]:
    """Return rows as objects, and the numbers of the wrong ones, from 1: each has the answer of the next wrong one."""
    rows = [[{"role": m.role, "content": m.content} for m in row.messages] for row in demo_rows("train")[:count]]
    wrong = list(range(7, len(rows), 20))
    answers = [rows[number][-1]["content"] for number in wrong]
    for number, answer in zip(wrong, answers[1:] + answers[:1], strict=True):
        rows[number][-1]["content"] = answer
    return [{"messages": row} for row in rows], {number + 1 for number in wrong}


def main() -> None:
    """Train, and count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=800)
    parser.add_argument("--epochs", type=int, default=2)
    options = parser.parse_args()
    rows, wrong = corrupted(options.rows)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "rows.jsonl"
        data.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
        settings = RECIPE | {"num_train_epochs": options.epochs, "output_dir": f"{folder}/run"}
        run = lorakeet.train("demo", str(data), training_config=settings, peft_config=PEFT_RECIPE)
        lines = (run.directory / FILE).read_text(encoding="utf-8").splitlines()
    ledger = Ledger.of(json.loads(line) for line in lines)
    trained = {row.place.rpartition(":")[2] for row in ledger.rows}
    wrong = {number for number in wrong if str(number) in trained}  # some are held out
    worst = {int(row.place.rpartition(":")[2]) for row in ledger.hardest(len(ledger.rows) // 10)}
    share = len(wrong & worst) / len(wrong)
    print(
        f"{len(wrong & worst)} of {len(wrong)} wrong rows ({share:.0%}) stand among the hardest {len(worst)} of {len(trained)}"
    )
    sys.exit(share < WANTED)


if __name__ == "__main__":
    main()
