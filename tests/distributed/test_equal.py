"""Two processes do what one does: gradients, losses, parameters, and runs that go on with another number of them."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.rank import train_case

# One process with eight rows a step, and two with four each; rows are ragged, and 23 of them leave a last step of
# three where a step takes ten: one process then has a row less than the other.
EIGHT = {"per_device_train_batch_size": 8, "num_train_epochs": 2}
FOUR = {**EIGHT, "per_device_train_batch_size": 4}
ONE_STEP = {"max_steps": 1}
CASES = {
    "ddp": {"settings": FOUR, "held_out": 5},
    "fsdp": {"settings": FOUR, "held_out": 5, "fsdp": True},
    "first": {"settings": {"per_device_train_batch_size": 4, **ONE_STEP}},
    "accumulated": {"settings": FOUR | {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}},
    "clipped": {"settings": FOUR | {"max_grad_norm": 0.5}},
    "ragged": {"settings": FOUR | {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 5}, "rows": 23},
    "ragged fsdp": {
        "settings": FOUR | {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 5},
        "fsdp": True,
        "rows": 23,
    },
    "dropout": {"settings": FOUR, "lora": {"lora_dropout": 0.1}},
    "dropout first": {"settings": FOUR, "lora": {"lora_dropout": 0.1}, "stop_at": 3},
    "dropout second": {"settings": FOUR, "lora": {"lora_dropout": 0.1}, "resume": "dropout first"},
    "two": {"settings": FOUR, "stop_at": 2},
    "one to two": {"settings": FOUR, "resume": "one"},
    "one to two fsdp": {"settings": FOUR, "resume": "one", "fsdp": True},
}
ALONE = {
    "eight": {"settings": EIGHT, "held_out": 5},
    "eight first": {"settings": {"per_device_train_batch_size": 8, **ONE_STEP}},
    "eight clipped": {"settings": EIGHT | {"max_grad_norm": 0.5}},
    "ten": {"settings": EIGHT | {"per_device_train_batch_size": 10}, "rows": 23},
    "one": {"settings": EIGHT, "stop_at": 2},
}
SAME_AS = {
    "ddp": "eight",
    "fsdp": "eight",
    "first": "eight first",
    "accumulated": "eight",
    "clipped": "eight clipped",
    "ragged": "ten",
    "ragged fsdp": "ten",
    "one to two": "eight",
    "one to two fsdp": "eight",
}


@pytest.fixture(scope="module")
def results(tmp_path_factory, run_to_end):
    """Every case done by two processes in one launch, and those of one process done here."""
    out = tmp_path_factory.mktemp("runs")
    for name, case in ALONE.items():
        train_case(f"{out}/{name}", **case)
    cases = {
        name: {**case, **({"resume": f"{out}/{case['resume']}"} if "resume" in case else {})} for name, case in CASES.items()
    }
    (out / "plan.json").write_text(json.dumps({"out": str(out), "cases": cases}))
    ended = run_to_end("-m", "tests.distributed.rank", str(out / "plan.json"))
    assert ended.returncode == 0, ended.stderr
    accumulated = {**EIGHT, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    train_case(f"{out}/two to one", settings=accumulated, resume=f"{out}/two")
    return out


def tensors(results, name, rank=0):
    return load_file(results / f"{name}.{rank}.safetensors")


def rows(results, name):
    return json.loads((results / f"{name}.0.json").read_text())


def assert_same(found, expected):
    """Compare adapters, gradients and moments, each as one vector.

    Relative to 2e-6: another order of sums differs by a few 1e-7, and six steps of AdamW carry that on.
    """
    assert found.keys() == expected.keys()
    for kind in ("param", "grad", "moment"):
        names = [name for name in expected if name.startswith(kind) and not name.endswith("step")]
        a, b = (torch.cat([tensors[name].flatten() for name in names]) for tensors in (found, expected))
        assert ((a - b).norm() / b.norm()).item() < 2e-6, kind


@pytest.mark.parametrize("name", SAME_AS)
def test_two_processes_equal_one(results, name):
    truth = SAME_AS[name]
    assert_same(tensors(results, name), tensors(results, truth))
    found, expected = rows(results, name), rows(results, truth)[-len(rows(results, name)) :]
    assert [row["step"] for row in found] == [row["step"] for row in expected]
    for key in ("loss", "grad_norm", "eval_loss"):
        values = [(row[key], other[key]) for row, other in zip(found, expected, strict=True) if key in row]
        assert [a for a, _ in values] == pytest.approx([b for _, b in values], rel=1e-6), key
    for key in ("num_tokens", "num_supervised_tokens", "epoch", "learning_rate"):
        assert [row.get(key) for row in found] == [row.get(key) for row in expected], key


def test_one_gradient_of_two_processes_equals_that_of_one_in_every_tensor(results):
    found, expected = tensors(results, "first"), tensors(results, "eight first")
    for name in expected:
        if name.startswith("grad") and "lora_B" in name:  # lora_A's is zero in the first step
            assert ((found[name] - expected[name]).norm() / expected[name].norm()).item() < 1e-6, name


def test_both_processes_hold_the_same_adapters_to_the_bit(results):
    for name in CASES:
        first, second = tensors(results, name), tensors(results, name, rank=1)
        assert all(torch.equal(first[key], second[key]) for key in first), name


def test_the_base_is_shared_out_and_the_same_numbers_come_of_it(results):
    whole, parts = tensors(results, "ddp"), tensors(results, "fsdp")
    assert_same(parts, whole)


def test_resuming_with_the_same_number_is_exact_to_the_bit(results):
    straight, resumed = tensors(results, "dropout"), tensors(results, "dropout second")
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(straight[key], resumed[key]) for key in straight)


def test_processes_drop_out_each_on_its_own(results):
    rng = load_file(results / "dropout first" / "checkpoints" / "step-000003" / "rng.safetensors")
    assert not torch.equal(rng["cpu"], rng["process 1 cpu"])


def test_one_process_goes_on_where_two_stopped(results):
    assert_same(tensors(results, "two to one"), tensors(results, "eight"))


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_equal_one_process(run_to_end, tmp_path):
    train_case(f"{tmp_path}/truth", settings=EIGHT)
    cases = {"ddp": {"settings": FOUR}, "fsdp": {"settings": FOUR, "fsdp": True}}
    (tmp_path / "plan.json").write_text(json.dumps({"out": str(tmp_path), "cases": cases}))
    ended = run_to_end("-m", "tests.distributed.rank", str(tmp_path / "plan.json"), LORAKEET_TEST_CUDA="1")
    assert ended.returncode == 0, ended.stderr
    for name in cases:
        losses = [[row["loss"] for row in rows(tmp_path, case)] for case in (name, "truth")]
        assert losses[0] == pytest.approx(losses[1], rel=1e-3), name


@pytest.mark.parametrize("name", [name for name in SAME_AS if "one to two" not in name])
def test_the_ledger_of_two_processes_has_the_rows_of_one(results, name):
    def losses(case):
        lines = (results / f"{case}.ledger" / "rows.jsonl").read_text().splitlines()
        return {(row["epoch"], row["step"], row["place"]): row["loss"] for row in map(json.loads, lines)}

    found, expected = losses(name), losses(SAME_AS[name])
    assert len(expected) > 0
    assert found.keys() == expected.keys()
    assert list(found.values()) == pytest.approx([expected[key] for key in found], abs=2e-5)
