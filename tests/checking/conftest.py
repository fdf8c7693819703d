"""The tokenizers of the data tests."""

from tests.data.conftest import data_dir, model_dir, phi3, phi3_bare, smollm2, tiny

__all__ = ["data_dir", "model_dir", "phi3", "phi3_bare", "smollm2", "tiny"]
