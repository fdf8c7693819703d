"""Token ids and masks against the independent oracle, on every tokenizer there is."""

import pytest

from lorakeet.data.encode import encode_many
from lorakeet.data.prove import prove_many
from lorakeet.data.templates.template import template_for
from tests.data.oracle import Oracle, random_conversation

NUM_CONVERSATIONS = 10_000


def test_masks_match_oracle(tokenizer, rng):
    template = template_for(tokenizer)
    oracle = Oracle(tokenizer)
    system = "system" in template.roles
    rows = [random_conversation(rng, f"row {i}", system=system) for i in range(NUM_CONVERSATIONS)]
    examples = encode_many(rows, tokenizer, template)
    prove_many(rows, examples, tokenizer, template)
    num_answers = 0
    for row, example in zip(rows, examples, strict=True):
        ids, mask = oracle.encode(row)
        ours = [0] * len(example.input_ids)
        for start, end in example.spans:
            ours[start:end] = [1] * (end - start)
        assert example.input_ids == ids, row
        assert ours == mask, row
        num_answers += len(example.spans)
    assert num_answers > 1.2 * NUM_CONVERSATIONS


def test_oracle_notices_a_wrong_mask(tiny, rng):
    row = random_conversation(rng, "row", system=False)
    ids, mask = Oracle(tiny).encode(row)
    assert 0 < sum(mask) < len(ids)
    assert mask[0] == 0


@pytest.mark.parametrize("ask", [False, True])
def test_ids_match_transformers(tokenizer, rng, ask):
    """The same through transformers' own apply_chat_template."""
    from transformers import PreTrainedTokenizerFast

    reference = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.full, bos_token=tokenizer.bos_token, eos_token=tokenizer.eos_token
    )
    reference.chat_template = tokenizer.chat_template
    template = template_for(tokenizer)
    for i in range(100):
        row = random_conversation(rng, f"row {i}", system="system" in template.roles)
        messages = row.messages[:-1] if ask else row.messages
        row = type(row)(messages, row.place)
        plain = [{"role": m.role, "content": m.content} for m in messages]
        expected = reference.apply_chat_template(plain, tokenize=True, add_generation_prompt=ask, return_dict=False)
        assert encode_many([row], tokenizer, template, add_generation_prompt=ask)[0].input_ids == expected
