"""Silent bugs of several processes, put back in by a patch at run time, and found."""

import json

import pytest

from tests.distributed.conftest import run_to_end, torchrun  # noqa: F401  fixtures
from tests.distributed.rank import train_case
from tests.distributed.test_equal import assert_same, tensors


def test_row_2_ranks_weighted_equally_is_found_by_comparing_with_one_process(run_to_end, tmp_path):  # noqa: F811
    settings = {"max_steps": 1}
    train_case(f"{tmp_path}/truth", settings=settings | {"per_device_train_batch_size": 8})
    cases = {"shared": {"settings": settings | {"per_device_train_batch_size": 4}}}
    (tmp_path / "plan.json").write_text(json.dumps({"out": str(tmp_path), "cases": cases}))
    for module in ("tests.distributed.rank", "tests.faults.mean_of_means"):
        ended = run_to_end("-m", module, str(tmp_path / "plan.json"))
        assert ended.returncode == 0, ended.stderr
        if module.endswith("rank"):
            assert_same(tensors(tmp_path, "shared"), tensors(tmp_path, "truth"))
        else:
            with pytest.raises(AssertionError, match="grad"):
                assert_same(tensors(tmp_path, "shared"), tensors(tmp_path, "truth"))
