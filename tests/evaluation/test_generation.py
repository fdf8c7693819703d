"""Answers to held-out rows: the prompt is all before the last answer, the reference is that answer."""

import pytest

from lorakeet.data.conversation import Conversation, Message
from lorakeet.data.encode import encode
from lorakeet.errors import DataError
from lorakeet.evaluation.generation import generate_answers, mean_scores
from lorakeet.evaluation.metrics import exact_match
from lorakeet.infer.engine import generate

LIMIT = 12


def test_answers_are_the_generators_own(tuned, tokenizer, template, conversations):
    answers = generate_answers(tuned, conversations, max_new_tokens=LIMIT)
    for conversation, answer in zip(conversations, answers, strict=True):
        before = Conversation(conversation.messages[:-1], conversation.place)
        prompt = encode(before, tokenizer, template, add_generation_prompt=True).input_ids
        (alone,) = generate(tuned.model, [prompt], stop_ids=tokenizer.stop_ids, max_new_tokens=LIMIT)
        assert answer.text == tokenizer.decode(alone.ids, skip_control=True)
        assert (answer.place, answer.stop_reason) == (conversation.place, alone.stop_reason)
        assert answer.reference == conversation.messages[-1].content
        assert answer.prompt == conversation.messages[-2].content


def test_the_prompt_is_the_beginning_of_the_trained_row(tokenizer, template, conversations):
    for conversation in conversations:
        before = Conversation(conversation.messages[:-1], conversation.place)
        prompt = encode(before, tokenizer, template, add_generation_prompt=True).input_ids
        row = encode(conversation, tokenizer, template)
        assert row.input_ids[: len(prompt)] == prompt
        assert row.spans[-1][0] == len(prompt)


def test_turns_after_the_last_answer_are_left_out(tuned, conversations):
    longer = Conversation((*conversations[0].messages, Message("user", "thanks")))
    answers = generate_answers(tuned, [longer, conversations[0]], max_new_tokens=LIMIT)
    assert (answers[0].text, answers[0].reference) == (answers[1].text, answers[1].reference)


def test_a_metric_of_ones_own_scores_every_answer(tuned, conversations):
    seen = []

    def metric(reference, generated):
        seen.append((reference, generated))
        return len(seen) / 10

    answers = generate_answers(tuned, conversations, max_new_tokens=3, metrics={"mine": metric, "exact": exact_match})
    assert seen == [(answer.reference, answer.text) for answer in answers]
    assert [answer.scores["mine"] for answer in answers] == [i / 10 for i in range(1, 10)]
    assert mean_scores(answers) == {"mine": pytest.approx(0.5), "exact": 0.0}


def test_progress_counts_answers(tuned, conversations):
    told = []
    answers = generate_answers(tuned, conversations, max_new_tokens=5, on_progress=lambda *row: told.append(row))
    assert told == [(done, len(answers)) for done in range(len(answers) + 1)]


def test_rejects_a_row_without_an_answer(tuned):
    row = Conversation((Message("user", "hi"),), place="rows.jsonl:7")
    with pytest.raises(DataError, match=r"E-DATA-24 rows\.jsonl:7"):
        generate_answers(tuned, [row], max_new_tokens=5)


def test_rejects_a_prompt_beyond_the_context(tuned):
    row = Conversation((Message("user", "fox " * 300), Message("assistant", "yes")), place="rows.jsonl:8")
    with pytest.raises(DataError, match=r"E-DATA-27 rows.jsonl:8 the prompt has \d+ tokens; .* holds 200"):
        generate_answers(tuned, [row], max_new_tokens=5)
