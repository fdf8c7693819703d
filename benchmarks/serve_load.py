"""A server under load: many requests from many clients, one in ten cut off; answers, statuses and memory are checked.

data in: numbers of requests and clients, and how many wait in one queue first → out: a few lines, the last one the verdict;
status 1 if an answer differs from the lone one, a status is not 200, an answer stays open, or memory grows by more than 5 %.
The model is the tests' small random one with two adapters, so that the server is what is loaded.

    python -m benchmarks.serve_load --requests 10000 --clients 32
"""

import argparse
import json
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
from fastapi import FastAPI

from lorakeet.data.templates.template import template_for
from lorakeet.infer.load import NamedAdapter
from lorakeet.lora.per_row import read_adapter
from lorakeet.serve.app import create_app
from lorakeet.serve.limits import Limits
from lorakeet.serve.metrics import Metrics
from lorakeet.serve.served import Served
from tests.data.conftest import trained
from tests.serve.conftest import build_model, running, write_adapter
from tests.serve.crowd import ask_all, held, post, request_of, wait_until

QUESTIONS, NAMES, GROWTH = 20, ("tiny", "one", "two"), 0.05


def main() -> None:
    """Load a server of this process from its own threads."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--queued", type=int, default=1000)
    options = parser.parse_args()
    sys.exit(load(options.requests, options.clients, options.queued))


def load(num_requests: int, num_clients: int, num_queued: int) -> int:
    """Load a server and print what came of it; return 0 if all is well."""
    with tempfile.TemporaryDirectory() as folder:
        app = create_app(_served(Path(folder)), limits=Limits(max_open=num_queued))
        with running(app) as url:
            if not _queue(app, url, num_queued):
                print("FAILED: not every answer of the queue is the lone one")
                return 1
            return _load(app.state.server.metrics, f"{url}/v1/chat/completions", num_requests, num_clients)


def _queue(app: FastAPI, url: str, num_queued: int) -> bool:
    """Let requests wait in one queue, all at once; return whether each then has its lone answer."""
    lone = {name: post(url, model=name).json()["choices"] for name in NAMES}
    with ThreadPoolExecutor(1) as pool:
        with held(app):
            asked = pool.submit(ask_all, url, [request_of(url, model=NAMES[i % 3]) for i in range(num_queued)])
            wait_until(lambda: app.state.server.metrics.num_open == num_queued, 120)
        found = asked.result(300)
    num_equal = sum(
        status == 200 and json.loads(body)["choices"] == lone[NAMES[i % 3]] for i, (status, _, body) in enumerate(found)
    )
    print(f"{num_queued} requests queued at once: {num_equal} equal")
    return num_equal == num_queued


def _served(folder: Path) -> Served:
    model, tokenizer = build_model(), trained("bpe-chatml")
    served = Served("tiny", model, tokenizer, template_for(tokenizer, name="chatml"))
    for seed, name in enumerate(NAMES[1:], start=1):
        served.adapters[name] = NamedAdapter(read_adapter(model, write_adapter(folder / name, seed)), name)
    return served


def _load(metrics: Metrics, url: str, num_requests: int, num_clients: int) -> int:
    bodies = [
        {"model": name, "messages": [{"role": "user", "content": f"say {i}"}], "max_tokens": 8, "temperature": 0}
        for i in range(QUESTIONS)
        for name in NAMES
    ]
    lone = [httpx.post(url, json=body, timeout=60).json()["choices"] for body in bodies]
    clients = [httpx.Client(timeout=120) for _ in range(num_clients)]

    def ask(i: int) -> str:
        client, body = clients[i % num_clients], bodies[i % len(bodies)]
        if i % 10 == 9:
            with client.stream("POST", url, json={**body, "stream": True}) as reply:
                next(reply.iter_lines())
            return "cut off"
        reply = client.post(url, json=body)
        if reply.status_code != 200:
            return str(reply.status_code)
        return "equal" if reply.json()["choices"] == lone[i % len(bodies)] else "different"

    found: dict[str, int] = {}
    start, settled = time.perf_counter(), 0
    with ThreadPoolExecutor(num_clients) as pool:
        for i, outcome in enumerate(pool.map(ask, range(num_requests))):
            found[outcome] = found.get(outcome, 0) + 1
            if i == num_requests // 5:
                settled = _resident_bytes()
    for client in clients:
        client.close()
    seconds, growth = time.perf_counter() - start, _resident_bytes() / settled - 1
    deadline = time.perf_counter() + 10
    while metrics.num_open and time.perf_counter() < deadline:
        time.sleep(0.05)
    print(f"{num_requests} requests from {num_clients} clients, {num_requests / seconds:.0f} a second: {found}")
    memory = f"memory after the first fifth {settled / 2**20:.0f} MiB, at the end {growth:+.1%}"
    print(f"{memory}; {metrics.num_open} answers left open")
    is_good = set(found) <= {"equal", "cut off"} and growth <= GROWTH and metrics.num_open == 0
    print(f"{'PASSED' if is_good else 'FAILED'} in {seconds:.0f} s")
    return int(not is_good)


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
