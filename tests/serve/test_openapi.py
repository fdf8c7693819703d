"""Schemathesis asks what the OpenAPI description allows, and no answer may be a defect or a form that is not described."""

import pytest

schemathesis = pytest.importorskip("schemathesis")

PATHS = ("/tokenize", "/apply-template", "/v1/completions", "/v1/chat/completions", "/v1/responses")
PATHS += ("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/v1/models")


def name_what_is_served(body):
    """Put names of the server into a body, which no text drawn by chance would find: then a route goes on behind them."""
    names = {"model": "one", "lora_path": "two"}
    if isinstance(body, dict):
        body |= {key: names[key] for key in body.keys() & names.keys()}


@pytest.mark.parametrize("path", PATHS)
def test_what_the_description_allows_is_answered(app, url, path):
    from hypothesis import HealthCheck, Phase, given, settings

    schema = schemathesis.openapi.from_dict(app.openapi())
    schema.config.update(base_url=url)
    operation = next(iter(schema[path].values())) if path != "/v1/models" else schema[path]["GET"]

    @settings(max_examples=8, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy())
    def ask(case):
        name_what_is_served(case.body)
        reply = case.call(timeout=60)
        assert reply.status_code < 500, reply.text
        assert str(reply.status_code) in {*operation.definition.raw["responses"]}, reply.text
        if reply.status_code >= 400:
            assert set(reply.json()["error"]) == {"message", "type", "param", "code"}

    ask()
