"""A server that is killed: its clients get an error at once, and it serves again on the same port."""

import contextlib
import socket
import time

import httpx

from tests.faults.runs import Child, Outcome, World

SECONDS = 60
"""Longest that a client waits for a server that is gone, or for one that starts."""


def campaign(world: World, num: int) -> Outcome:
    """Kill a server `num` times, in turn in the middle of a stream and between two requests."""
    outcome = Outcome("the server is killed")
    port = _free_port()
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    child = _start(world, port)
    body = {"model": _model(port), "messages": [{"role": "user", "content": "What is 1 plus 2?"}], "temperature": 0}
    try:
        expected = httpx.post(url, json=body, timeout=SECONDS).json()["choices"]
        for case in range(num):
            outcome.num_cases += 1
            wrong = _cut_off(child, url, body) if case % 2 == 0 else ""
            child.kill()
            wrong = wrong or _refusal(url, body)
            child = _start(world, port)
            if httpx.post(url, json=body, timeout=SECONDS).json()["choices"] != expected:
                wrong = wrong or "answers otherwise after a new start"
            if wrong:
                outcome.misses.append(f"kill {case}: {wrong}")
    finally:
        child.kill()
    return outcome


def _cut_off(child: Child, url: str, body: dict) -> str:
    """Kill the server behind the first piece of an answer; return what is wrong with what the client sees."""
    began = time.monotonic()
    try:
        with httpx.stream("POST", url, json={**body, "stream": True}, timeout=SECONDS) as reply:
            lines = reply.iter_lines()
            next(lines)
            child.kill()
            text = "\n".join(lines)
    except httpx.TimeoutException:
        return f"a client hung for {time.monotonic() - began:.0f} s"
    except httpx.TransportError:
        return ""
    return "" if "[DONE]" in text else "an answer that was cut off looks whole"


def _refusal(url: str, body: dict) -> str:
    try:
        httpx.post(url, json=body, timeout=SECONDS)
    except httpx.ConnectError:
        return ""
    return "something answers after the kill"


def _start(world: World, port: int) -> Child:
    """Start the server and wait until it answers."""
    child = world.command(["serve", str(world.straight), "--port", str(port)], f"serve-{port}")
    end = time.monotonic() + SECONDS
    while time.monotonic() < end and child.is_alive:
        with contextlib.suppress(httpx.TransportError):
            httpx.get(f"http://127.0.0.1:{port}/v1/models", timeout=SECONDS)
            return child
        time.sleep(0.05)
    raise AssertionError(f"the server does not start: {child.stderr[-300:]}")


def _model(port: int) -> str:
    return httpx.get(f"http://127.0.0.1:{port}/v1/models", timeout=SECONDS).json()["data"][-1]["id"]


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]
