"""Twenty steps beside transformers' Trainer over PEFT: the same rows in the same order, the same losses and gradients.

Both start from one adapter on one tiny Phi-3 in fp32, with clipping, warm-up, a cosine and weight decay. The rows are
ragged, so that a mean of means, a shifted schedule or a clipped norm would each leave the curve within a few steps.
"""

import peft
import pytest
import torch
import transformers

from lorakeet.config import LoraConfig, TrainingConfig
from lorakeet.data.conversation import Example
from lorakeet.data.order import iterate_steps
from lorakeet.lora.adapter import save_adapter
from lorakeet.lora.inject import inject
from lorakeet.models.weights import load_model
from lorakeet.training.loop import Trainer
from lorakeet.training.reporting import Reporters

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs

STEPS = 20
LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]}
SHARED = {
    "learning_rate": 2e-2,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 4,
    "weight_decay": 0.1,
    "max_grad_norm": 2.0,
    "max_steps": STEPS,
    "logging_steps": 1,
    "seed": 3,
}
VARIANTS = {
    "one pass a step": {"per_device_train_batch_size": 4},
    "accumulated": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3},
    "accumulated and smoothed": {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "label_smoothing_factor": 0.1,
    },
    "adafactor": {"per_device_train_batch_size": 4, "optim": "adafactor"},
}


@pytest.fixture
def directory(tmp_path):
    torch.manual_seed(0)
    config = transformers.Phi3Config(
        vocab_size=97,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=64,
        original_max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        initializer_range=0.2,
    )
    transformers.Phi3ForCausalLM(config).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def rows():
    generator = torch.Generator().manual_seed(1)
    found = []
    for i in range(24):
        length = 6 + (i * 11) % 29
        ids = torch.randint(3, 97, (length,), generator=generator).tolist()
        found.append(Example(ids, ((2, 3), (length // 2 + 1, length)), f"rows.jsonl:{i + 1}"))
    return found


class Recorder:
    def __init__(self):
        self.rows = []

    def step(self, row):
        self.rows.append(row.to_dict())

    def log(self, row):
        pass

    def close(self):
        pass


def ours(directory, adapter, rows, options):
    config = LoraConfig(**LORA)
    torch.manual_seed(5)
    model = inject(load_model(directory, dtype=torch.float32), config)
    save_adapter(model, adapter, config=config, base_model_name_or_path=str(directory))
    recorder = Recorder()
    trainer = Trainer(model, TrainingConfig(**SHARED, **options, eval_strategy="no"), rows)
    trainer.run(Reporters(recorder))
    return recorder.rows, {name: param.detach() for name, param in trainer.named_params.items()}


def collate(rows):
    """Pad on the right, labels in the supervised spans alone."""
    longest = max(len(row["ids"]) for row in rows)
    ids = torch.full((len(rows), longest), 2)
    labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
    for i, row in enumerate(rows):
        n = len(row["ids"])
        ids[i, :n], mask[i, :n] = torch.tensor(row["ids"]), 1
        for start, end in row["spans"]:
            labels[i, start:end] = ids[i, start:end]
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def theirs(directory, adapter, rows, options, output):
    batch, passes = options["per_device_train_batch_size"], options.get("gradient_accumulation_steps", 1)
    steps = iterate_steps(rows, batch_size=batch, grad_accum_steps=passes, seed=3, max_steps=STEPS)
    order = [{"ids": row.input_ids, "spans": row.spans} for step in steps for rows in step for row in rows]
    assert len(order) == STEPS * batch * passes
    base = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(base, adapter, is_trainable=True)
    args = transformers.TrainingArguments(
        **SHARED,
        **options,
        output_dir=str(output),
        train_sampling_strategy="sequential",
        report_to="none",
        use_cpu=True,
        remove_unused_columns=False,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = transformers.Trainer(model, args, train_dataset=order, data_collator=collate)
    trainer.train()
    trained = {name: param.detach() for name, param in model.named_parameters() if param.requires_grad}
    return [row for row in trainer.state.log_history if "grad_norm" in row], trained


@pytest.mark.parametrize("variant", VARIANTS)
def test_trajectory_matches_transformers_trainer(variant, directory, rows, tmp_path):
    options = VARIANTS[variant]
    mine, my_params = ours(directory, tmp_path / "adapter", rows, options)
    truth, their_params = theirs(directory, tmp_path / "adapter", rows, options, tmp_path / "out")
    assert len(mine) == len(truth) == STEPS
    for step, (one, other) in enumerate(zip(mine, truth, strict=True), 1):
        for key in ("loss", "grad_norm", "learning_rate"):
            assert one[key] == pytest.approx(other[key], rel=1e-4), (step, key)
    assert max(row["grad_norm"] for row in mine) > 2.0 > min(row["grad_norm"] for row in mine)  # clipped, and not
    assert mine[-1]["loss"] < 0.9 * mine[0]["loss"]
    for name, param in their_params.items():
        plain = name.removeprefix("base_model.model.").replace(".default.weight", "")
        assert ((my_params[plain] - param).norm() / param.norm()).item() < 1e-3, name
