"""The tiny model of the trainer's own tests."""

from tests.training.conftest import examples, make_model  # noqa: F401
