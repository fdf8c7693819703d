"""What is trained on is what inference sends, row by row."""

from dataclasses import replace

from lorakeet.chat_model import ChatModel
from lorakeet.data.conversation import Conversation, Example
from lorakeet.data.encode import EncodeOptions, Learn
from lorakeet.data.encode_all import encode_rows
from lorakeet.infer.answers import encode_prompts
from lorakeet.proofs.proof import TO_THE_BIT, Measured, Proof
from lorakeet.proofs.subject import Subject


def rows_are_prompts(subject: Subject) -> Measured:
    """Encode and prove every row anew, compare with the rows that training uses, and with the prompts that a chat sends."""
    config, data = subject.config, subject.data.train
    chat = replace(subject.chat_model, template=subject.chat_model.template.on(config.data.date))
    options = EncodeOptions(config.data.learn, config.training_config.max_length or chat.context, config.data.truncation)
    fresh = encode_rows(subject.rows, chat.tokenizer, chat.template, options)  # raises if a row is not proven
    differ = sum(one != other for one, other in zip(fresh.examples, data.examples, strict=False))
    differ += abs(len(fresh.examples) - len(data.examples))
    asked = [(subject.rows[i], example) for i, example in zip(fresh.kept, fresh.examples, strict=True)]
    differ += sum(not _is_sent(chat, config.data.learn, row, example) for row, example in asked[:: max(1, len(asked) // 32)])
    return Measured(float(differ), 0.0, TO_THE_BIT, note=f"{differ} of {len(subject.rows)} rows differ")


def _is_sent(chat_model: ChatModel, learn: Learn, row: Conversation, example: Example) -> bool:
    """Tell whether a chat would send the very tokens that stand before each answer that is trained on."""
    if row.text is not None or example.num_cut or learn == "text":
        return True
    answers = [i for i, message in enumerate(row.messages) if message.role == "assistant"]
    prompts = encode_prompts(chat_model, [replace(row, messages=row.messages[:i]) for i in answers])
    sent = {tuple(ids) for ids in prompts}
    return all(tuple(example.input_ids[:start]) in sent for start, _ in example.spans)


PROOF = Proof(
    name="rows = prompts",
    compares="Tokens before each answer and those inference sends; each answer's end; all rows encoded anew and as trained on.",
    fix="Look at the row with lorakeet check --row, and delete the cache if only the cached rows differ",
    measure=rows_are_prompts,
    is_quick=True,
)
