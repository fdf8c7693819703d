"""The heap of large tensors: nothing overlaps, neighbours join again, what does not fit goes elsewhere."""

import json
import random
import subprocess
import sys
import threading

import pytest
import torch

from lorakeet.machine import tensor_heap
from lorakeet.machine.compiling import can_compile

MB = 1 << 20


@pytest.fixture(scope="module", autouse=True)
def _installed():
    if not sys.platform.startswith("linux") or not can_compile():
        pytest.skip("needs Linux and a C++ compiler")
    assert tensor_heap.install()


def check(held):
    """Every tensor still has its own value everywhere, and no two share an address."""
    ends = 0
    for tensor, value in sorted(held, key=lambda one: one[0].data_ptr()):
        assert tensor.data_ptr() >= ends
        ends = tensor.data_ptr() + tensor.numel() * tensor.element_size()
        assert bool((tensor == value).all())


def take_and_free(seed, turns=300):
    rng, held = random.Random(seed), []
    for turn in range(turns):
        if held and rng.random() < 0.48:
            held.pop(rng.randrange(len(held)))
        else:
            value = rng.randrange(1 << 30)
            held.append((torch.full((rng.choice([10, 20_000, rng.randrange(1, 400_000)]),), value), value))
        if turn % 50 == 0:
            check(held)
    check(held)


def test_tensors_never_overlap():
    take_and_free(0)


def test_tensors_never_overlap_where_several_threads_take_them():
    failures = []

    def run(seed):
        try:
            take_and_free(seed, turns=120)
        except AssertionError as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_tensors_can_be_resized_stored_and_copied(tmp_path):
    tensor = torch.arange(100_000)
    tensor.resize_(300_000)
    assert tensor[:100_000].tolist() == list(range(100_000))
    torch.save(tensor[:100_000].clone(), tmp_path / "x.pt")
    assert torch.load(tmp_path / "x.pt").tolist() == list(range(100_000))
    assert tensor.clone().data_ptr() != tensor.data_ptr()
    assert torch.from_numpy(tensor.numpy()).data_ptr() == tensor.data_ptr()


def in_own_process(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_steps_of_different_sizes_take_no_more_than_the_largest():
    """However the blocks of a step differ from the last one's, they are all free, and joined, when the next begins."""
    largest, most, small = in_own_process(
        "import json, torch\n"
        "from lorakeet.machine import tensor_heap\n"
        "assert tensor_heap.install()\n"
        "def step(n):\n"
        "    kept = [torch.empty(n * (1 + i % 3), dtype=torch.uint8) for i in range(20)]\n"
        "    del kept[::2]\n"
        "    kept += [torch.empty(n * 2, dtype=torch.uint8) for _ in range(10)]\n"
        "step(1_000_000)\n"
        "largest = tensor_heap.extent()\n"
        "small = []\n"
        "for n in (700_001, 999_999, 123_456, 850_000, 1_000_000, 640_321):\n"
        "    step(n)\n"
        "    small.append(torch.empty(1000))\n"  # what malloc would put between the blocks
        "print(json.dumps([largest, tensor_heap.extent(), len(small)]))"
    )
    assert small == 6
    assert 40 * MB < largest < 80 * MB
    assert most == largest


def test_what_the_heap_cannot_hold_goes_to_pytorchs_own():
    extent, total = in_own_process(
        "import json, torch\n"
        "from lorakeet.machine import tensor_heap\n"
        f"tensor_heap.reserved_bytes = lambda: {8 * MB}\n"
        "assert tensor_heap.install()\n"
        f"kept = [torch.full(({MB},), i, dtype=torch.uint8) for i in range(12)]\n"
        "assert all(bool((tensor == i).all()) for i, tensor in enumerate(kept))\n"
        "print(json.dumps([tensor_heap.extent(), len(kept)]))"
    )
    assert (extent, total) == (8 * MB, 12)
