"""The base models and adapters of the export tests."""

from tests.exports.conftest import adapter, base, own_cache  # noqa: F401
