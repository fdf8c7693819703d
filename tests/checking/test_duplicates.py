"""Rows that say the same, nearly the same, or contradict each other are named with their lines."""

from lorakeet.checking.duplicates import Duplicates
from lorakeet.data.conversation import Conversation, Message

LONG = "When does the last ferry leave from the pier at Ribe on a Sunday evening in winter, and what does it cost for two"


def survey(*rows, near=True):
    found = Duplicates("a.jsonl:{}".format, near=near)
    for prompt, answer in rows:
        messages = (Message("system", "Answer."), Message("user", prompt), Message("assistant", answer))
        found.add(Conversation(messages))
    return found


def test_one_prompt_with_different_answers_is_a_conflict():
    found = survey(("2 + 2", "4"), ("1 + 1", "2"), ("2 + 2", "5"), ("2 + 2", "4"), (" 2 + 2", "4 "), ("1 + 1", "2"))
    assert found.conflicts() == (4, [["a.jsonl:0", "a.jsonl:2", "a.jsonl:3", "a.jsonl:4"]])
    assert found.num_near == 0


def test_near_duplicates_differ_in_little():
    nine = "At nine."
    found = survey(
        (LONG, nine), (LONG, nine), (LONG.upper() + "?!", nine), (LONG + " people", nine), ("Who?", "I"), ("Who", "I")
    )
    assert found.near_duplicates() == [("a.jsonl:2", "a.jsonl:0"), ("a.jsonl:3", "a.jsonl:0")]
    assert found.num_near == 2


def test_unlike_rows_are_no_duplicates():
    rows = [(f"{LONG.replace('ferry', word)} {word} or {word}s", f"{word} at {i}") for i, word in enumerate(["bus", "train"])]
    halves = [(LONG[:60] + " something else is asked here entirely and nothing of before", "x")]
    assert survey((LONG, "x"), *halves).num_near == 0
    assert survey(*rows, near=False).num_near == 0


def test_rows_of_plain_text_count_too():
    found = Duplicates("a.jsonl:{}".format)
    for text in (LONG, LONG, LONG + " today"):
        found.add(Conversation((), text=text))
    assert found.conflicts() == (0, [])
    assert found.near_duplicates() == [("a.jsonl:2", "a.jsonl:0")]
