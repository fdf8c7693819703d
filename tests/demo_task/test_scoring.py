"""The score is strict: the same JSON value and nothing around it."""

import pytest

from lorakeet.demo_task.scoring import score, score_all
from lorakeet.errors import DataError

CALL = '{"tool": "send_money", "arguments": {"to": "Ana", "amount": 12.5, "tags": ["a", {"b": null}]}}'


@pytest.mark.parametrize(
    "generated",
    [
        CALL,
        f"  {CALL}\n",
        CALL.replace(" ", ""),
        CALL.replace("12.5", "12.50"),
        CALL.replace("12.5", "125e-1"),
        CALL.replace("Ana", "\\u0041na"),
        '{"arguments": {"tags": ["a", {"b": null}], "amount": 12.5, "to": "Ana"}, "tool": "send_money"}',
    ],
)
def test_score_accepts_every_spelling_of_the_same_value(generated: str) -> None:
    assert score(CALL, generated)


@pytest.mark.parametrize(
    "generated",
    [
        "",
        " ",
        "send_money",
        f"Sure! {CALL}",
        f"{CALL} Done.",
        f"{CALL}.",
        f"{CALL}{CALL}",
        f"```json\n{CALL}\n```",
        f"\ufeff{CALL}",
        f"\u00a0{CALL}",
        CALL[:-1],
        CALL + "}",
        CALL.replace('"', "'"),
        CALL.replace("null}]", "null},]"),
        CALL.replace("12.5", "12.6"),
        CALL.replace("12.5", '"12.5"'),
        CALL.replace("12.5", "NaN"),
        CALL.replace("12.5", "012.5"),
        CALL.replace("Ana", "ana"),
        CALL.replace("Ana", "Ana "),
        CALL.replace("null", "false"),
        CALL.replace('"a", {"b": null}', '{"b": null}, "a"'),
        CALL.replace('"a", ', ""),
        CALL.replace('"to"', '"To"'),
        CALL.replace('"to": "Ana", ', ""),
        CALL.replace('"to": "Ana"', '"to": "Ana", "note": null'),
        CALL.replace('"to": "Ana"', '"to": "Bo", "to": "Ana"'),
        CALL.replace('"to": "Ana"', '"to": "Ana", "to": "Ana"'),
        "[" * 100_000,
        "[" * 40 + "]" * 40,
        "9" * 5_000,
        '{"tool": "\\ud800"}',
        f"[{CALL}]",
    ],
)
def test_score_rejects_anything_else(generated: str) -> None:
    assert not score(CALL, generated)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("1", "1.0", True),
        ("1", "true", False),
        ("true", "1", False),
        ("0", "false", False),
        ("true", "true", True),
        ("null", "null", True),
        ("null", "0", False),
        ("[]", "{}", False),
        ('""', "null", False),
        ('{"tool": null}', '{"tool": "null"}', False),
        ('{"a": [1, true]}', '{"a": [1, 1]}', False),
        ("[1]", "[1, 1]", False),
    ],
)
def test_score_keeps_the_kinds_of_json_apart(one: str, other: str, same: bool) -> None:
    assert score(one, other) is same


def test_score_rejects_an_expected_answer_that_is_not_json() -> None:
    with pytest.raises(DataError, match="expected answer"):
        score('{"tool": ', "{}")


def test_score_all_is_the_share_of_right_answers() -> None:
    assert score_all([CALL, CALL, "1", "2"], [CALL, "no", "1", "3"]) == 0.5
    assert score_all(["1"], ["1"]) == 1.0


@pytest.mark.parametrize(("expected", "generated"), [([], []), (["1"], []), (["1"], ["1", "1"])])
def test_score_all_rejects_lists_that_do_not_match(expected: list[str], generated: list[str]) -> None:
    with pytest.raises(DataError, match="E-DATA-140"):
        score_all(expected, generated)
