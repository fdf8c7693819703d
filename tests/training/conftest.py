"""A tiny Phi-3 and rows for it, made from seeds."""

import pytest

from tests.training.tiny import build_model, ragged_rows


@pytest.fixture
def make_model():
    return build_model


@pytest.fixture
def examples():
    return ragged_rows()
