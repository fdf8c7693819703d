"""Many clients at once, huge bodies, clients that dawdle, an engine that breaks: named statuses, and nobody waits for ever."""

import contextlib
import json
import resource
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from lorakeet.serve import run
from lorakeet.serve.limits import Limits
from tests.serve.conftest import running
from tests.serve.crowd import CHAT, ask_all, held, post, request_of, wait_until
from tests.serve.test_safety import check_error

MANY = 1000


def connect(url, **options):
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), **options)


def test_of_a_thousand_requests_at_once_the_queue_takes_its_number(build_app):
    """Those are answered as if they were alone; the others are refused at once."""
    app, names = build_app(), ("tiny", "one", "two")
    limit, registry = Limits().max_open, app.state.server.metrics.registry
    refusals = {"path": "/v1/chat/completions", "status": "429"}
    with running(app) as url:
        lone = {name: post(url, model=name).json()["choices"] for name in names}
        with ThreadPoolExecutor(1) as pool:
            with held(app):
                asked = pool.submit(ask_all, url, [request_of(url, model=names[i % 3]) for i in range(MANY)])
                wait_until(lambda: registry.get_sample_value("lorakeet_requests_total", refusals) == MANY - limit)
            found = asked.result(120)
        refused = [(head, json.loads(body)["error"]) for status, head, body in found if status == 429]
        answered = [(names[i % 3], json.loads(body)) for i, (status, _, body) in enumerate(found) if status == 200]
        assert (len(answered), len(refused)) == (limit, MANY - limit)
        assert all(body["choices"] == lone[name] for name, body in answered)
        assert all(error["code"] == "E-SRV-280" and b"retry-after: 1" in head.lower() for head, error in refused)
        assert post(url).json()["choices"] == lone["one"]


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_huge_body_is_refused_without_being_read(url, is_chunked):
    size, piece, sent = 100 << 20, b" " * (1 << 20), 0
    length = "transfer-encoding: chunked" if is_chunked else f"content-length: {size}"
    head = (
        f"POST /tokenize HTTP/1.1\r\nhost: {url.removeprefix('http://')}\r\ncontent-type: application/json\r\n{length}\r\n\r\n"
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with connect(url, timeout=30) as client:
        client.sendall(head.encode())
        try:
            while sent < size:
                client.sendall(b"%x\r\n%s\r\n" % (len(piece), piece) if is_chunked else piece)
                sent += len(piece)
        except ConnectionError:
            pass
        status = client.recv(65536).splitlines()[0]
    assert b" 413 " in status
    assert sent < size // 4, "the server went on reading"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 << 10


def test_clients_see_why_a_huge_body_was_refused(url):
    def pieces():
        for _ in range(100):
            yield b" " * (1 << 20)

    headers = {"content-type": "application/json"}
    check_error(httpx.post(f"{url}/tokenize", content=pieces(), headers=headers, timeout=30), 413)
    check_error(httpx.post(f"{url}/tokenize", content=b" " * (4 << 20), headers=headers, timeout=30), 413)


def test_a_body_that_comes_byte_by_byte_holds_nobody_up(build_app):
    with running(build_app(limits=Limits(body_seconds=1.0))) as url:
        post(url)  # the first pass of an engine takes longer
        with connect(url, timeout=30) as slow:
            head, _, body = request_of(url).partition(b"\r\n\r\n")
            slow.sendall(head + b"\r\n\r\n")
            slow.settimeout(0.05)
            said, answered = b"", 0
            for byte in body:
                with contextlib.suppress(OSError):  # closed since the last look: what was said is still to be read
                    slow.sendall(bytes([byte]))
                answered += post(url).status_code == 200
                with contextlib.suppress(TimeoutError):
                    said = slow.recv(4096)
                    break
        assert b" 408 " in said.splitlines()[0]
        assert answered > 1


def test_a_connection_that_asks_nothing_is_closed(url, monkeypatch):
    monkeypatch.setattr(run, "HEAD_SECONDS", 0.5)
    with connect(url, timeout=20) as silent, connect(url, timeout=20) as slow, httpx.Client() as kept:
        slow.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost")
        assert kept.get(f"{url}/health").status_code == 200
        assert silent.recv(1) == slow.recv(1) == b""
        assert kept.get(f"{url}/health").status_code == 200


def test_a_stream_that_nobody_reads_ends_in_its_time(build_app):
    """Its client's connection stays open and takes nothing: the answer is closed for all that, and others are not held up."""
    app = build_app(limits=Limits(answer_seconds=4.0))
    metrics, engine = app.state.server.metrics, app.state.server.worker.engine
    with running(app) as url, socket.socket() as silent:
        silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        host, port = url.removeprefix("http://").split(":")
        silent.connect((host, int(port)))
        silent.sendall(request_of(url, max_tokens=400, n=8, logprobs=True, top_logprobs=20, stream=True, temperature=1))
        wait_until(lambda: metrics.num_open == 8 and engine.living)
        wait_until(lambda: not engine.living)
        assert post(url).status_code == 200
        wait_until(lambda: metrics.num_open == 0)
        assert post(url).status_code == 200


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="the system has no such timeout")
def test_a_connection_that_takes_nothing_is_ended(monkeypatch):
    monkeypatch.setattr(run, "UNREAD_SECONDS", 1)
    with run.bound_socket("127.0.0.1", 0) as listener:
        listener.listen()
        with socket.create_connection(listener.getsockname()), listener.accept()[0] as connection:
            connection.settimeout(None)
            with pytest.raises(TimeoutError):
                connection.sendall(b"x" * (64 << 20))


def test_everybody_hears_of_an_engine_that_breaks(build_app, monkeypatch):
    """Begun and waiting, streamed and whole: each gets its error, and what comes later is told that nothing is served."""
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    app = build_app()
    engine, breaks = app.state.server.worker.engine, threading.Event()
    advance = engine.advance
    engine.advance = lambda: 1 / 0 if breaks.is_set() else advance()
    with running(app) as url, ThreadPoolExecutor(1) as pool:
        body = {**CHAT, "max_tokens": 400, "stream": True, "temperature": 1}
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=30) as begun:
            lines = begun.iter_lines()
            next(lines)
            with held(app):
                requests = [request_of(url, stream=i % 2 == 0) for i in range(40)]
                asked = pool.submit(ask_all, url, requests)
                wait_until(lambda: app.state.server.metrics.num_open == len(requests) + 1)
                breaks.set()
            assert "E-SRV-288" in [line for line in lines if line][-1]
        for i, (status, _, body) in enumerate(asked.result(60)):
            assert (status, b"E-SRV-288" in body) == (200 if i % 2 == 0 else 500, True)
        check_error(post(url), 503, "E-SRV-279")
        check_error(httpx.get(f"{url}/health"), 503)
        wait_until(lambda: app.state.server.metrics.num_open == 0)
