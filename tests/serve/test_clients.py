"""OpenAI's own client and pydantic-ai drive the server; every greedy answer is the lone one."""

import json

import pytest

import lorakeet as lora
from lorakeet.data.conversation import Conversation, Message
from lorakeet.data.encode import encode
from lorakeet.infer.engine import generate
from tests.serve.conftest import build_model

openai = pytest.importorskip("openai")

NUM_TOKENS = 16
GREEDY = {"temperature": 0, "max_tokens": NUM_TOKENS}


@pytest.fixture
def client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def lone(app, adapter_folder):
    """The answer of the model with one adapter alone, without a server."""
    served = app.state.server.served

    def answer(name, messages, num_tokens=NUM_TOKENS):
        model = build_model()
        if name != "tiny":
            lora.load_adapter(model, adapter_folder / name)
        turns = tuple(Message(message["role"], message["content"]) for message in messages)
        prompt = encode(Conversation(turns), served.tokenizer, served.template, add_generation_prompt=True).input_ids
        (answer,) = generate(model, [prompt], stop_ids=served.tokenizer.stop_ids, max_new_tokens=num_tokens)
        return served.tokenizer.decode(answer.ids, skip_control=True)

    return answer


def user(text):
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize("name", ["tiny", "one", "two"])
def test_chat_answers_as_the_adapter_alone(client, lone, name):
    reply = client.chat.completions.create(model=name, messages=user("hello"), **GREEDY)
    assert reply.choices[0].message.content == lone(name, user("hello"))
    assert reply.choices[0].finish_reason in ("stop", "length")
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


def test_parts_and_developer_are_text_and_system(client, lone):
    messages = [{"role": "developer", "content": "be quick"}, {"role": "user", "content": [{"type": "text", "text": "hel"}]}]
    messages[1]["content"].append({"type": "text", "text": "lo"})
    reply = client.chat.completions.create(model="one", messages=messages, **GREEDY)
    assert reply.choices[0].message.content == lone("one", [{"role": "system", "content": "be quick"}, *user("hello")])
    image = {"type": "image_url", "image_url": {"url": "data:,"}}
    with pytest.raises(openai.BadRequestError, match="type"):
        client.chat.completions.create(model="one", messages=[{"role": "user", "content": [image]}])


def test_streams_the_same_text(client, lone):
    chunks = list(
        client.chat.completions.create(
            model="two", messages=user("hello"), stream=True, stream_options={"include_usage": True}, **GREEDY
        )
    )
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert "".join(choice.delta.content or "" for choice in choices) == lone("two", user("hello"))
    reasons = [choice.finish_reason for choice in choices]
    assert reasons[:-1] == [None] * (len(reasons) - 1)
    assert reasons[-1] in ("stop", "length")
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens <= NUM_TOKENS


def test_choices_stop_strings_and_logprobs(client, lone):
    whole = lone("one", user("hello"))
    stop = whole[4:7]
    reply = client.chat.completions.create(model="one", messages=user("hello"), stop=[stop], **GREEDY)
    assert reply.choices[0].message.content == whole[: whole.index(stop)]
    assert reply.choices[0].finish_reason == "stop"
    options = {"temperature": 1.0, "seed": 5, "n": 3, "max_tokens": 8}
    first, again = (client.chat.completions.create(model="one", messages=user("hello"), **options) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in again.choices]
    assert len(set(texts)) == 3
    reply = client.chat.completions.create(model="one", messages=user("hello"), logprobs=True, top_logprobs=2, **GREEDY)
    for token in reply.choices[0].logprobs.content:
        assert token.logprob == pytest.approx(max(top.logprob for top in token.top_logprobs))


def test_completions_and_tokenize_agree(client, url):
    import httpx

    ids = httpx.post(f"{url}/tokenize", json={"prompt": "hello there"}).json()["tokens"]
    by_text = client.completions.create(model="tiny", prompt="hello there", logprobs=2, **GREEDY)
    by_ids = client.completions.create(model="tiny", prompt=ids, **GREEDY)
    assert by_text.choices[0].text == by_ids.choices[0].text
    assert by_text.usage.prompt_tokens == len(ids)
    assert len(by_text.choices[0].logprobs.tokens) == by_text.usage.completion_tokens
    chunks = client.completions.create(model="tiny", prompt="hello there", stream=True, **GREEDY)
    assert "".join(chunk.choices[0].text for chunk in chunks) == by_text.choices[0].text
    chat = httpx.post(f"{url}/apply-template", json={"messages": user("hello")}).json()
    assert "hello" in chat["prompt"]
    assert httpx.post(f"{url}/tokenize", json={"messages": user("hello")}).json()["tokens"] == chat["tokens"]


def test_responses_whole_and_streamed(client, lone):
    options = {"model": "one", "input": "hello", "temperature": 0, "max_output_tokens": NUM_TOKENS}
    reply = client.responses.create(**options)
    assert reply.output_text == lone("one", user("hello"))
    assert reply.usage.output_tokens <= NUM_TOKENS
    with client.responses.stream(**options) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
    assert text == reply.output_text


def test_json_answers_follow_their_schema(client):
    pytest.importorskip("llguidance")
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    for seed in range(3):
        reply = client.chat.completions.create(
            model="one", messages=user("hello"), response_format=form, temperature=1.0, seed=seed, max_tokens=200
        )
        assert reply.choices[0].finish_reason == "stop"
        assert list(json.loads(reply.choices[0].message.content)) == ["a"]
    broken = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}
    with pytest.raises(openai.BadRequestError, match="E-SRV-276"):
        client.chat.completions.create(model="one", messages=user("hello"), response_format=broken)


def test_tools_reach_the_prompt_and_calls_the_client(client, url, app, monkeypatch):
    from lorakeet.serve import forms

    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    history = [
        *user("how is it?"),
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}],
        },
        {"role": "tool", "tool_call_id": "c", "content": "sunny"},
    ]
    import httpx

    prompt = httpx.post(f"{url}/apply-template", json={"messages": history, "tools": [tool]}).json()["prompt"]
    assert all(part in prompt for part in ('"weather"', '"Rome"', "sunny"))
    said = 'Let me see.\n[{"name": "weather", "arguments": {"city": "Oslo"}}]'
    parse = forms.parse_tool_calls
    monkeypatch.setattr(forms, "parse_tool_calls", lambda text, names: parse(said, names))
    whole = client.chat.completions.create(model="one", messages=history, tools=[tool], **GREEDY).choices[0]
    assert (whole.finish_reason, whole.message.content) == ("tool_calls", "Let me see.")
    assert json.loads(whole.message.tool_calls[0].function.arguments) == {"city": "Oslo"}
    chunks = client.chat.completions.create(model="one", messages=history, tools=[tool], stream=True, **GREEDY)
    deltas = [chunk.choices[0] for chunk in chunks]
    assert deltas[-1].finish_reason == "tool_calls"
    assert [call.function.name for choice in deltas for call in choice.delta.tool_calls or ()] == ["weather"]


def test_adapters_are_listed_loaded_again_and_unloaded(client, url, adapter_folder, lone):
    import httpx

    cards = {card.id: card for card in client.models.list()}
    assert cards["one"].parent == "tiny"
    assert cards["one"].root == str(adapter_folder / "one")
    ask = {"messages": user("hello"), **GREEDY}
    for folder in ("one", "two", "one"):
        reply = httpx.post(f"{url}/v1/load_lora_adapter", json={"lora_name": "new", "lora_path": str(adapter_folder / folder)})
        assert reply.status_code == 200
        answer = client.chat.completions.create(model="new", **ask).choices[0].message.content
        assert answer == lone(folder, user("hello"))
    assert httpx.post(f"{url}/v1/unload_lora_adapter", json={"lora_name": "new"}).status_code == 200
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="new", **ask)
    outside = httpx.post(f"{url}/v1/load_lora_adapter", json={"lora_name": "x", "lora_path": "/etc"})
    climbing = httpx.post(f"{url}/v1/load_lora_adapter", json={"lora_name": "x", "lora_path": "one/../../.."})
    assert (outside.status_code, climbing.status_code) == (403, 403)


def test_pydantic_ai_gets_an_answer(url, lone):
    pytest.importorskip("pydantic_ai")
    import asyncio

    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    async def ask():
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
            agent = Agent(OpenAIChatModel("one", provider=OpenAIProvider(openai_client=client)))
            return await agent.run("hello", model_settings={"temperature": 0.0, "max_tokens": NUM_TOKENS})

    assert asyncio.run(ask()).output == lone("one", user("hello"))
