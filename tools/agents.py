"""AGENTS.md and llms.txt, for coding agents that use Lorakeet: a text of our own, and the commands as the code has them.

data in: the command line and docs/ → out: two files at the root. `python -m tools.agents` writes them; a test holds that they
are up to date.
"""

import re
from pathlib import Path

from tools.reference import commands, purpose

ROOT = Path(__file__).parents[1]
SUMMARY = (
    "Lorakeet fine-tunes Phi, Llama, Mistral, Qwen, Gemma and SmolLM chat models with LoRA and QLoRA on a person's own "
    "conversations, on CPUs and GPUs, and "
    "gives any PyTorch module loralib-compatible LoRA layers. Every row is proven before training."
)
HOW = """## How to use it

- Look before you train: `lorakeet check MODEL DATA --no-calibrate --json` reads and proves every row. Exit status 2 means the
  user's data is wrong; the one line on stderr says file, line, what was found and the fix.
- Every command takes `--json`: one JSON object on the last line of stdout. Progress goes to stderr.
- Exit status: 0 done, 1 a defect of Lorakeet's, 2 the user can mend it, 130 interrupted (the state is saved).
- Errors begin with a stable code such as `E-DATA-20`. docs/errors.md lists them all. Go by the code, not by the words.
- Try the whole chain without a download: `lorakeet train demo demo --max-steps 2 -o runs/try --json`.
- MODEL is an alias, a directory or a hub id. DATA is files, folders, hub ids, or `demo`. Only hub ids use the network.
- Nothing is overwritten. A run directory that exists needs `--resume`, `--restart`, or another `-o`.
- Keys are those of transformers.TrainingArguments (`--set training_config.KEY=VALUE`), peft.LoraConfig
  (`peft_config`) and BitsAndBytesConfig (`quantization_config`). Unknown keys stop the run.
- Leave `bf16` alone: the faster precision is measured. `lorakeet doctor --json` says what the machine can do.
- Under torchrun write `--set peft_config.r=8`, not `--r 8`.

```python
import lorakeet

run = lorakeet.train("demo", "demo", training_config={"max_steps": 2, "output_dir": "runs/try"})
print(run.summary)  # loss, eval_loss_before, eval_loss_after, tokens_per_second, ...
```

A run directory holds `config.yaml` (repeats the run), `metrics.jsonl`, `train.log`, `checkpoints/`, and `adapter/`, which PEFT
loads unchanged.
"""


def agents_page() -> str:
    """Return AGENTS.md."""
    head = "# Using Lorakeet: notes for coding agents\n\n<!-- written by tools/agents.py -->\n\n"
    return f"{head}{SUMMARY}\n\n## Commands\n\n{_commands()}\n{HOW}\nTo change Lorakeet itself, read CONTRIBUTING.md.\n"


def llms_page() -> str:
    """Return llms.txt: the commands, and what there is to read."""
    pages = "\n".join(f"- [{title}]({path})" for path, title in _pages())
    return f"# Lorakeet\n\n> {SUMMARY}\n\n## Commands\n\n{_commands()}\n## Pages\n\n{pages}\n"


def _commands() -> str:
    return "".join(f"- `lorakeet {name}`: {purpose(one)[0].split('. ')[0].rstrip('.')}.\n" for name, one in commands().items())


def _pages() -> list[tuple[str, str]]:
    """Return path and title of every page of docs/."""
    files = sorted((ROOT / "docs").rglob("*.md"))
    titles = [re.search(r"^# (.+)$", file.read_text(encoding="utf-8"), re.M) for file in files]
    return [(str(file.relative_to(ROOT)), title[1]) for file, title in zip(files, titles, strict=True) if title]


if __name__ == "__main__":
    (ROOT / "AGENTS.md").write_text(agents_page(), encoding="utf-8")
    (ROOT / "llms.txt").write_text(llms_page(), encoding="utf-8")
