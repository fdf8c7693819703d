"""A conversation turn by turn: its prompts, its memory, and the loop that reads it."""

import json
import signal
from pathlib import Path

import pytest
import torch

from lorakeet.chat_model import ChatModel
from lorakeet.config import LoraConfig
from lorakeet.data.conversation import Conversation, Message
from lorakeet.data.encode import encode
from lorakeet.data.templates.template import template_for
from lorakeet.errors import ConfigError
from lorakeet.infer.chat_commands import plain, run_chat
from lorakeet.infer.chat_session import ChatSession
from lorakeet.infer.engine import Engine, generate
from lorakeet.lora.inject import inject, lora_layers
from tests.data.conftest import trained


@pytest.fixture
def session(build):
    tokenizer = trained("bpe")
    model = build(vocab_size=640, max_position_embeddings=128, original_max_position_embeddings=128)
    return ChatSession(ChatModel(model, tokenizer, template_for(tokenizer, name="phi3-mini"), Path()), max_new_tokens=8)


def prompt_of(session, *messages):
    conversation = Conversation(tuple(Message(role, text) for role, text in messages))
    return encode(conversation, session.chat_model.tokenizer, session.chat_model.template, add_generation_prompt=True).input_ids


def test_every_turn_sends_the_whole_conversation(session, monkeypatch):
    sent, prepare = [], Engine.prepare
    monkeypatch.setattr(Engine, "prepare", lambda engine, request: sent.append(request.prompt) or prepare(engine, request))
    session.reset("be quick")
    first = session.ask("hello")
    second = session.ask("how are you?")
    opening = [("system", "be quick"), ("user", "hello")]
    assert sent[0] == prompt_of(session, *opening)
    assert sent[1] == prompt_of(session, *opening, ("assistant", first.text), ("user", "how are you?"))
    assert [message.content for message in session.messages] == ["hello", first.text, "how are you?", second.text]


def test_what_was_read_before_is_not_read_again(session):
    session.prefix_bytes = 1 << 20
    kept = [session.ask(text) for text in ("hello", "how are you?", "and now?")]
    session.reset()
    session.prefix_bytes, session._engine = 0, None
    read = [session.ask(text) for text in ("hello", "how are you?", "and now?")]
    assert [reply.text for reply in kept] == [reply.text for reply in read]
    assert [reply.num_cached_tokens for reply in read] == [0, 0, 0]
    assert kept[2].num_cached_tokens >= kept[1].num_prompt_tokens


def test_a_reply_says_how_it_came_about(session):
    pieces = []
    reply = session.ask("hello", on_text=pieces.append)
    (alone,) = generate(
        session.chat_model.model, [prompt_of(session, ("user", "hello"))], stop_ids=session.stop_ids, max_new_tokens=8
    )
    assert "".join(pieces) == reply.text == session.chat_model.tokenizer.decode(alone.ids, skip_control=True)
    assert reply.num_prompt_tokens == len(prompt_of(session, ("user", "hello")))
    assert (reply.num_answer_tokens, reply.stop_reason) == (len(alone.ids), alone.stop_reason)
    assert reply.tokens_per_second == pytest.approx(reply.num_answer_tokens / reply.seconds)


def test_stops_at_the_end_of_the_turn(session):
    end = session.chat_model.tokenizer.token_id("<|end|>")
    with torch.no_grad():
        session.chat_model.model.lm_head.weight[end] = 0
        free = session.ask("hello")
        session.reset()
        # Make the end token outweigh whatever would come third.
        ids = prompt_of(session, ("user", "hello")) + session.chat_model.tokenizer.encode_text(free.text)[:0]
        hidden = session.chat_model.model(torch.tensor(ids), torch.arange(len(ids)), torch.tensor([0, len(ids)]))[-1]
        session.chat_model.model.lm_head.weight[end] = 100 * hidden
    assert end in session.stop_ids
    reply = session.ask("hello")
    assert (reply.text, reply.num_answer_tokens, reply.stop_reason) == ("", 0, "stop")


def talk(session, *lines):
    remaining, written, noted = list(lines), [], []
    run_chat(session, lambda: remaining.pop(0) if remaining else None, lambda: plain(written.append), noted.append)
    return "".join(written), noted


def test_the_loop_answers_lines_and_obeys_commands(session):
    expected = [session.ask("hello").text]
    session.reset()
    session.reset("be quick")
    expected.append(session.ask("hello").text)
    session.reset()
    written, noted = talk(session, "hello\n", "\n", "/system be quick\n", "hello\n", "/exit\n", "never\n")
    assert written == f"{expected[0]}\n{expected[1]}\n"
    assert any("system prompt" in note for note in noted)
    assert session.system == "be quick"
    assert [message.content for message in session.messages] == ["hello", expected[1]]


def test_reset_keeps_the_system_prompt(session):
    session.reset("be quick")
    talk(session, "hello\n", "/reset\n")
    assert (session.messages, session.system) == ([], "be quick")


def test_help_and_unknown_commands_name_the_commands(session):
    _, noted = talk(session, "/help\n", "/nonsense\n")
    assert all("/reset" in note for note in noted)
    assert "No command /nonsense" in noted[1]


def test_a_question_that_does_not_fit_is_forgotten(session):
    written, noted = talk(session, "hello\n", "fox " * 400, "hello\n")
    assert any("E-CFG-44" in note and "/reset" in note for note in noted)
    assert [message.content for message in session.messages][::2] == ["hello", "hello"]
    assert written.count("\n") >= 2
    with pytest.raises(ConfigError, match="E-CFG-44"):
        session.ask("fox " * 400)


def interrupts(times):
    """Show answers, with Ctrl-C at the second piece of the first one."""
    pieces = []

    def write(piece):
        pieces.append(piece)
        if len(pieces) == 2:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)

    return pieces, lambda: plain(write)


def test_an_answer_that_is_stopped_stays_as_far_as_it_came(session):
    whole = session.ask("first").text
    session.reset()
    pieces, show = interrupts(1)
    lines, noted = ["first\n", "second\n"], []
    run_chat(session, lambda: lines.pop(0) if lines else None, show, noted.append)
    assert noted[0] == "Stopped. The conversation goes on from here; /undo forgets this answer, /retry asks again."
    said = session.messages[1].content
    assert said.startswith("".join(pieces[:2]))
    assert whole.startswith(said.rstrip("\ufffd"))
    assert len(said) < len(whole)
    assert [message.content for message in session.messages][::2] == ["first", "second"]


def test_a_second_ctrl_c_forgets_the_answer(session):
    _, show = interrupts(2)
    lines, noted = ["first\n", "second\n"], []
    run_chat(session, lambda: lines.pop(0) if lines else None, show, noted.append)
    assert noted[0] == "Interrupted; this question and its answer are forgotten."
    assert session.messages[0].content == "second"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_control_tokens_in_a_question_are_text(session):
    prompt = prompt_of(session, ("user", "a<|end|>b"))
    assert prompt.count(session.chat_model.tokenizer.token_id("<|end|>")) == 1


def test_retry_and_undo_go_back_by_one_answer(session):
    written, noted = talk(session, "hello\n", "/retry\n", "again\n", "/undo\n", "/undo\n", "/undo\n", "/retry\n")
    answers = written.split("\n")
    assert answers[0] == answers[1]
    assert session.messages == []
    assert noted[-2:] == ["Nothing has been asked."] * 2


def test_settings_change_what_follows(session):
    _, noted = talk(session, "/set temperature 0.7\n", "/set max_new_tokens 3\n", "/set seed 4\n", "hello\n", "/stats\n")
    assert (session.sampling.temperature, session.sampling.seed, session.max_new_tokens) == (0.7, 4, 3)
    assert "answer of 3 tokens" in noted[-1]
    _, noted = talk(session, "/set temperature hot\n", "/set colour 3\n", "/set temperature -1\n")
    assert [note.split()[0] for note in noted] == ["E-CFG-271", "E-CFG-271", "E-CFG-82"]


def test_a_saved_conversation_is_a_training_row_and_goes_on(session, tmp_path):
    file = tmp_path / "talk.jsonl"
    _, noted = talk(session, "/system be quick\n", "hello\n", f"/save {file}\n", f"/save {file}\n", "/save\n")
    said = list(session.messages)
    assert [note.split()[0] for note in noted[-2:]] == ["E-CFG-272"] * 2
    roles = [message["role"] for message in json.loads(file.read_text())["messages"]]
    assert roles == ["system", "user", "assistant"]
    session.reset()
    talk(session, f"/load {file}\n")
    assert (session.system, session.messages) == ("be quick", said)
    _, noted = talk(session, "/load nowhere\n")
    assert noted[0].startswith("E-CFG-273")


def test_adapter_off_answers_as_the_base_and_compare_keeps_neither(session):
    base = session.ask("hello").text
    session.reset()
    _, noted = talk(session, "/adapter off\n")
    assert noted == ["This model has no adapter."]
    model = inject(session.chat_model.model, LoraConfig(r=2, lora_alpha=8))
    with torch.no_grad():
        for _, layer in lora_layers(model):
            layer.lora_B.normal_(std=0.3)
    tuned = session.ask("hello").text
    session.reset()
    written, noted = talk(session, "/adapter off\n", "hello\n", "/adapter on\n", "/reset\n", "hello\n", "/adapter up\n")
    assert written == f"{base}\n{tuned}\n"
    assert base != tuned
    assert noted[-1].startswith("E-CFG-270")
    session.reset()
    written, noted = talk(session, "/compare hello\n")
    assert (written, [note for note in noted if note.endswith(":")], session.messages) == (
        f"{base}\n{tuned}\n",
        ["base:", "adapter:"],
        [],
    )


def test_the_terminal_reads_several_lines_and_leaves_at_the_end():
    toolkit = pytest.importorskip("prompt_toolkit")
    from prompt_toolkit.input import create_pipe_input
    from prompt_toolkit.output import DummyOutput

    from lorakeet.infer.terminal import terminal_reader

    with create_pipe_input() as keys:
        read = terminal_reader(toolkit.PromptSession, input=keys, output=DummyOutput())
        keys.send_text("one\\\ntwo\n")
        assert read() == "one\ntwo"
        keys.send_text("a\x1b\rb\r")
        assert read() == "a\nb"
        keys.send_text("never\x03" + "\x04")
        assert read() is None


def test_what_was_typed_is_remembered_for_its_owner_alone(tmp_path):
    toolkit = pytest.importorskip("prompt_toolkit")
    from prompt_toolkit.input import create_pipe_input
    from prompt_toolkit.output import DummyOutput

    from lorakeet.infer.terminal import terminal_reader

    file = tmp_path / "state" / "history"

    def read(keys_sent, history=file):
        with create_pipe_input() as keys:
            keys.send_text(keys_sent)
            return terminal_reader(toolkit.PromptSession, history=history, input=keys, output=DummyOutput())()

    assert read("straße\x1b\rtwo\r") == "straße\ntwo"
    assert file.stat().st_mode & 0o777 == 0o600
    assert read("never\r", history=None) == "never"
    assert read("\x1b[A\r") == "straße\ntwo"
    assert "never" not in file.read_text()


def test_commands_and_what_stands_behind_them_are_completed(tmp_path):
    pytest.importorskip("prompt_toolkit")
    from prompt_toolkit.completion import CompleteEvent
    from prompt_toolkit.document import Document

    from lorakeet.infer.terminal import command_completer

    (tmp_path / "said.jsonl").touch()

    def found(text):
        return [one.text for one in command_completer(["mine"]).get_completions(Document(text), CompleteEvent())]

    assert found("/sta") == ["/stats"]
    assert found("/adapter m") == ["mine"]
    assert found("/set temp") == ["temperature"]
    assert found(f"/load {tmp_path}/sa") == ["id.jsonl"]
    assert found("what /st") == found("hello ") == []
