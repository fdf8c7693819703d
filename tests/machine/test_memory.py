"""What a process that trains on the CPU keeps: few products, and a user's own setting."""

import os
import sys
from pathlib import Path

import pytest
import torch

from lorakeet.machine import memory


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch):
    monkeypatch.setenv(memory._CAPACITY, "")  # so that it is as before in the end
    monkeypatch.delenv(memory._CAPACITY)


def test_few_products_are_kept_unless_the_user_says_otherwise(monkeypatch):
    memory.keep_few_products()
    assert os.environ[memory._CAPACITY] == str(memory.KEPT_PRODUCTS)
    monkeypatch.setenv(memory._CAPACITY, "1024")
    memory.keep_few_products()
    assert os.environ[memory._CAPACITY] == "1024"


def test_code_to_come_is_that_of_sizes_not_met_yet_up_to_what_is_kept(monkeypatch):
    def products(num_sizes, num_met=2, dtype=torch.bfloat16):
        return memory.product_bytes_to_come(dtype, num_sizes, num_met) / memory.PRODUCT_BYTES

    assert products(1) == products(2) == 0
    assert products(3) == memory.PRODUCTS_A_PASS
    assert products(100) == memory.KEPT_PRODUCTS - 2 * memory.PRODUCTS_A_PASS
    assert products(100, dtype=torch.float32) == 0
    monkeypatch.setenv(memory._CAPACITY, "70")
    assert products(100, num_met=1) == 10
    assert products(100) == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux says")
def test_free_memory_is_what_the_system_says_and_no_more_than_a_container_may_take(monkeypatch):
    held = torch.ones(64 << 20, dtype=torch.uint8)
    before = memory.free_bytes()
    assert 0 < before < 8 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert held.all()
    texts = {"/proc/meminfo": "MemTotal: 100 kB\nMemAvailable: 50 kB\nSwapFree: 10 kB\nHugePages_Free: 0\n"}
    monkeypatch.setattr(Path, "read_text", lambda self, **options: _text(texts, self))
    assert memory.free_bytes() == 60 * 1024
    texts |= {"/sys/fs/cgroup/memory.max": "max\n", "/sys/fs/cgroup/memory.stat": "anon 1000\nfile 7\n"}
    assert memory.free_bytes() == 60 * 1024
    texts["/sys/fs/cgroup/memory.max"] = "5000\n"
    assert memory.free_bytes() == 4000
    texts.clear()
    assert memory.free_bytes() is None


def _text(texts, path):
    if str(path) not in texts:
        raise FileNotFoundError(path)
    return texts[str(path)]
