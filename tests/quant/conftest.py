"""Small models saved by transformers, and a cache of the tests' own."""

from tests.models import conftest as models

own_cache, save_phi3, edit_json = models.own_cache, models.save_phi3, models.edit_json
