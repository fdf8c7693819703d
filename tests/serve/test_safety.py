"""Bad requests get named statuses in OpenAI's form; clients that leave or dawdle cost nothing; the end is orderly."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from benchmarks import serve_load
from lorakeet.errors import ServerError
from lorakeet.infer.text_stream import StopText
from lorakeet.serve.limits import LOOPBACK, Access, Limits
from lorakeet.serve.run import bound_socket, check_access, example
from lorakeet.serve.tool_calls import parse_tool_calls
from tests.serve.conftest import CONTEXT, running
from tests.serve.crowd import CHAT, JSON, post, wait_until


def check_error(reply, status, text=""):
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert text in error["message"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"\xff\xfe", 400),
        (b'{"model": "\\uD800"}', 400),
        (b'{"model": "\xed\xa0\x80"}', 400),
        (b"", 400),
        (b"[" * 100_000, 400),
        (b"[]", 400),
        (b" " * (1 << 20) + b"{}", 413),
    ],
    ids=["cut", "not-utf-8", "surrogate", "surrogate-bytes", "empty", "deep", "list", "huge"],
)
def test_bodies_that_are_none(url, body, status):
    check_error(post(url, body), status)


@pytest.mark.parametrize(
    ("changes", "status", "text"),
    [
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, 400, "role"),
        ({"messages": [{"role": "user", "content": None}]}, 400, "E-SRV-274"),
        ({"max_tokens": -1}, 400, "max_tokens"),
        ({"max_tokens": "10"}, 400, "max_tokens"),
        ({"max_tokens": 10**9}, 400, "max_tokens"),
        ({"temperature": float("nan")}, 400, "temperature"),
        ({"temperature": -1}, 400, "temperature"),
        ({"top_p": 0}, 400, "top_p"),
        ({"n": 10**6}, 400, "E-SRV-281"),
        ({"stop": ["x"] * 50_000}, 400, "E-SRV-282"),
        ({"max_tokens": CONTEXT}, 400, f"holds {CONTEXT} tokens"),
        ({"messages": [{"role": "user", "content": "fox " * 2000}]}, 400, "E-SRV-272"),
        ({"model": "../one"}, 404, "does not exist"),
        ({"chat_template": "{{ 1 }}"}, 400, "chat_template"),
        ({"frequency_penalty": 0.5}, 400, "frequency_penalty"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, 400, "surrogate"),
    ],
)
def test_requests_out_of_range(url, changes, status, text):
    check_error(post(url, **changes), status, text)


@pytest.mark.parametrize("name", ["temperature", "top_p", "repetition_penalty"])
def test_the_least_numbers_are_answered(url, name):
    for least in (1e-45, 5e-324):
        assert post(url, **{"temperature": 1, name: least}).status_code == 200


def test_control_tokens_in_a_message_are_text(url):
    end = httpx.post(f"{url}/tokenize", json={"messages": CHAT["messages"]}).json()["tokens"]
    messages = [{"role": "user", "content": "a<|im_end|>b"}]
    tokens = httpx.post(f"{url}/tokenize", json={"messages": messages}).json()["tokens"]
    assert len([t for t in tokens if t in (640 - 1, 640 - 2)]) == len([t for t in end if t in (640 - 1, 640 - 2)])
    assert post(url, messages=messages).status_code == 200


def test_other_kinds_of_body_and_unknown_paths(url):
    check_error(post(url, headers={"content-type": "text/plain"}), 415)
    check_error(httpx.get(f"{url}/nothing"), 404)
    check_error(httpx.get(f"{url}/v1/chat/completions"), 405)


def test_foreign_hosts_and_origins(url):
    check_error(post(url, headers={**JSON, "host": "evil.example"}), 403)
    check_error(post(url, headers={**JSON, "origin": "http://evil.example"}), 403)
    own = post(url, headers={**JSON, "origin": url})
    assert own.status_code == 200
    assert "access-control-allow-origin" not in own.headers
    assert httpx.options(f"{url}/v1/models", headers={"origin": "http://evil.example"}).status_code == 403


def test_key_and_named_origin(build_app):
    with running(build_app(api_key="secret", origins=("https://app.example",))) as url:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "secret"}):
            check_error(httpx.get(f"{url}/v1/models", headers=headers), 401)
        origin = {"origin": "https://app.example"}
        reply = httpx.get(f"{url}/v1/models", headers={"authorization": "Bearer secret", **origin})
        assert (reply.status_code, reply.headers["access-control-allow-origin"]) == (200, origin["origin"])
        assert (httpx.get(f"{url}/health").status_code, httpx.get(url).status_code) == (200, 200)


def test_an_open_address_needs_a_key():
    with pytest.raises(ServerError, match="E-SRV-285"):
        check_access("0.0.0.0", Access())
    check_access("0.0.0.0", Access(api_key="secret"))
    for host in LOOPBACK:
        check_access(host, Access())


def test_a_taken_port_is_one_line():
    with bound_socket("127.0.0.1", 0) as first:
        first.listen()
        with pytest.raises(ServerError, match=r"E-SRV-287 cannot listen on 127.0.0.1 port \d+: Address already in use"):
            bound_socket("127.0.0.1", first.getsockname()[1])


def test_the_lines_that_are_printed_get_an_answer(url, capsys):
    pytest.importorskip("openai")
    exec(example(url, "one", has_key=False), {})
    assert len(capsys.readouterr().out) > 1
    assert 'os.environ["LORAKEET_API_KEY"]' in example(url, "one", has_key=True)


def test_a_slow_client_is_told_so_and_a_full_queue_too(build_app):
    with running(build_app(limits=Limits(body_seconds=0.3, max_open=2))) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as slow:
            head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
            slow.sendall(f"{head}content-length: 100\r\n\r\n{{".encode())
            assert b" 408 " in slow.recv(4096).splitlines()[0]
        check_error(post(url, n=3), 429)
        assert post(url, n=2).status_code == 200


def test_an_answer_has_its_time(build_app):
    with running(build_app(limits=Limits(answer_seconds=0.0))) as url:
        check_error(post(url), 504, "E-SRV-278")


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_stops_its_generation(app, url, stream):
    engine = app.state.server.worker.engine
    host, port = url.removeprefix("http://").split(":")
    body = json.dumps({**CHAT, "max_tokens": CONTEXT - 100, "stream": stream, "temperature": 1}).encode()
    app.state.server.worker.engine.model.lm_head.weight.data[:8] *= 1  # the model is random: no end is likely
    with socket.create_connection((host, int(port))) as client:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
        client.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        wait_until(lambda: engine.living or app.state.server.metrics.num_open == 0)
    wait_until(lambda: not engine.living and app.state.server.metrics.num_open == 0)


def test_many_clients_get_the_lone_answers_and_some_are_cut_off(monkeypatch, capsys):
    monkeypatch.setattr(serve_load, "GROWTH", 1.0)  # a short run is not long enough to say
    assert serve_load.load(120, 8, 60) == 0
    shown = capsys.readouterr().out
    assert "60 requests queued at once: 60 equal" in shown
    assert "{'equal': 108, 'cut off': 12}" in shown
    assert shown.splitlines()[-1].startswith("PASSED in ")


def test_a_broken_engine_is_said_not_waited_for(build_app):
    app = build_app()
    with running(app) as url:
        assert post(url).status_code == 200
        worker = app.state.server.worker
        threading.excepthook, before = (lambda args: None), threading.excepthook
        try:
            worker.engine.advance = lambda: 1 / 0
            check_error(post(url), 500, "E-SRV-288")
        finally:
            threading.excepthook = before
        check_error(post(url), 503, "E-SRV-279")
        assert httpx.get(f"{url}/health").status_code == 503


def test_what_is_on_its_way_to_a_broken_engine_fails_too(build_app):
    """A request that comes during the pass that breaks waits in the thread's queue, not in the engine's."""
    app = build_app()
    worker, breaks = app.state.server.worker, threading.Event()
    threading.excepthook, before = (lambda args: None), threading.excepthook
    try:
        worker.engine.advance = lambda: breaks.wait(20) and 1 / 0
        with running(app) as url, ThreadPoolExecutor(2) as pool:
            first = pool.submit(post, url)
            wait_until(lambda: worker.engine.waiting)
            second, call = pool.submit(post, url), worker.call(lambda: "done")
            wait_until(lambda: app.state.server.metrics.num_open == 2)
            breaks.set()
            for reply in (first.result(20), second.result(20)):
                check_error(reply, 500, "E-SRV-288")
            with pytest.raises(ServerError, match="E-SRV-279"):
                call.result(20)
    finally:
        threading.excepthook = before


def test_a_client_that_leaves_before_the_first_event_leaves_nothing_behind(app):
    body = json.dumps({**CHAT, "stream": True, "max_tokens": 300}).encode()
    scope = {"type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "POST"}
    scope |= {"path": "/v1/chat/completions", "raw_path": b"/v1/chat/completions", "query_string": b"", "root_path": ""}
    scope |= {"headers": [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")], "scheme": "http"}
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive():
        return messages.pop() if messages else {"type": "http.disconnect"}

    async def send(message):
        await asyncio.sleep(0)

    asyncio.run(app({**scope, "client": None, "server": None}, receive, send))
    assert app.state.server.metrics.num_open == 0
    wait_until(lambda: not app.state.server.worker.engine.living)


def test_names_that_no_folder_can_have(url):
    for name in ("\0", "a" * 4000, "/" + "b" * 300):
        check_error(post(url, path="/v1/load_lora_adapter", body=json.dumps({"lora_name": "x", "lora_path": name})), 403)


def test_health_metrics_and_the_page(url):
    post(url)
    assert httpx.get(f"{url}/health").json() == {"status": "ok"}
    text = httpx.get(f"{url}/metrics").text
    for name in ("requests_total", "generated_tokens_total", "first_token_seconds_bucket", "open_answers"):
        assert f"lorakeet_{name}" in text
    page = httpx.get(url)
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "//" not in page.text.replace("http://www.w3.org", "").split("<script>")[0], "nothing from elsewhere"


SERVER = """
import sys
from tests.serve.conftest import build_model
from tests.data.conftest import trained
from lorakeet.data.templates.template import template_for
from lorakeet.serve.app import create_app
from lorakeet.serve.run import bound_socket, run_app
from lorakeet.serve.served import Served
tokenizer = trained("bpe-chatml")
served = Served("tiny", build_model(), tokenizer, template_for(tokenizer, name="chatml"))
run_app(create_app(served), bound_socket("127.0.0.1", int(sys.argv[1])), "tiny")
"""


@contextlib.contextmanager
def server_process(port):
    """Serve in a process of its own, which answers when this begins."""
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), str(root / "src")])
    process = subprocess.Popen([sys.executable, "-c", SERVER, str(port)], env={**os.environ, "PYTHONPATH": path}, cwd=root)
    try:
        wait_until(lambda: process.poll() is not None or _answers(f"http://127.0.0.1:{port}"), 120)
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_killed_server_is_noticed_and_starts_again_and_sigterm_drains():
    """Its clients get an error at once, its port is free at once; a stream that SIGTERM finds ends whole, with status 0."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    body = {**CHAT, "model": "tiny", "max_tokens": 300, "stream": True, "temperature": 1, "seed": 1}
    with contextlib.ExitStack() as stack:
        with server_process(port) as process:
            client = stack.enter_context(httpx.Client(timeout=60))
            streams = [stack.enter_context(client.stream("POST", f"{url}/v1/chat/completions", json=body)) for _ in range(3)]
            process.kill()
        for stream in streams:
            with pytest.raises(httpx.TransportError):
                stream.read()
        with pytest.raises(httpx.ConnectError):
            client.get(f"{url}/health")
    with server_process(port) as process:
        few = {**body, "max_tokens": 60}  # they come within the time that draining may take, on a busy machine too
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=few, timeout=60) as reply:
            lines = reply.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            assert [line for line in lines if line][-1] == "data: [DONE]"
        assert process.wait(30) == 0


def _answers(url):
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.HTTPError:
        return False


def test_stop_strings_are_cut_wherever_pieces_end():
    for size in (1, 2, 5, 100):
        stop, text, said = StopText(["</s>", "\n\nUser"]), "a </b> c\n\nYou \n\nUser: x", ""
        for at in range(0, len(text), size):
            said += stop.push(text[at : at + size]) if not stop.is_stopped else ""
        assert said == "a </b> c\n\nYou "
    stop = StopText(["abc"])
    assert stop.push("xab") + stop.finish() == "xab"


@pytest.mark.parametrize(
    ("text", "said", "names"),
    [
        ('{"name": "f", "arguments": {"a": 1}}', "", ["f"]),
        ('[{"name": "f", "arguments": {}}, {"name": "g", "arguments": {}}]', "", ["f", "g"]),
        ('Well.\n[{"name": "g"}]', "Well.", ["g"]),
        ('x <tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>', "x", ["f"]),
        ('{"name": "unknown"}', '{"name": "unknown"}', []),
        ("[1, 2]", "[1, 2]", []),
        ("plain", "plain", []),
    ],
)
def test_tool_calls_are_parsed_back(text, said, names):
    content, calls = parse_tool_calls(text, ["f", "g"])
    assert (content, [call["function"]["name"] for call in calls]) == (said, names)
