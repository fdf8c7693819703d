"""What the demo trains and how: a spoken request becomes one JSON tool call.

user       uh, remind me to water the plants on March 14 at 3 pm
assistant  {"tool": "set_reminder", "arguments": {"text": "water the plants", "date": "2026-03-14", "time": "3:00 pm"}}

A request that no tool serves becomes {"tool": null}. Held-out rows share no wording and no value with training rows,
so a good score means that the task was learned, not the rows.
"""

from typing import Any

YEAR = 2026

SYSTEM = f"Reply with one JSON tool call. The year is {YEAR}."
"""The system prompt of every row."""

MODEL = "The demo trains SmolLM2-135M-Instruct in the layout of Phi-3, a small model that is installed with the demo."
"""Which model it is, for those who expect Phi-3 itself."""

MAX_NEW_TOKENS = 64
"""More than the longest answer of the held-out rows needs, so that a right answer is never cut off."""

RECIPE: dict[str, Any] = {
    "num_train_epochs": 1,
    "per_device_train_batch_size": 8,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "linear",
    "eval_strategy": "no",
}
"""training_config of the demo: one pass, because a model that sees a row twice begins to memorise it."""

PEFT_RECIPE: dict[str, Any] = {"r": 16, "lora_alpha": 32}
"""peft_config of the demo."""
