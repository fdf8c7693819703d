"""A server on the loopback with a small random model and two adapters over it, in a thread of the tests' process."""

import asyncio
import contextlib
import socket
import threading
import time

import pytest
import torch

import lorakeet as lora
from lorakeet.data.templates.template import template_for
from lorakeet.lora.inject import lora_layers
from lorakeet.lora.per_row import read_adapter
from lorakeet.models.config import DecoderConfig
from lorakeet.models.decoder import CausalLM
from lorakeet.serve.limits import Access, Limits
from lorakeet.serve.run import protocol
from tests.data.conftest import trained

pytest.importorskip("fastapi")
uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

CONTEXT = 512


def build_model():
    """A random model whose weights are large enough that different contexts give different tokens."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "max_position_embeddings": CONTEXT, "original_max_position_embeddings": CONTEXT}
    model = CausalLM(DecoderConfig(vocab_size=640, **sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.3)
    return model


def write_adapter(folder, seed):
    """Write an adapter of random values for that model."""
    model = lora.inject(build_model(), lora.LoraConfig(r=3, lora_alpha=6))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, layer in lora_layers(model):
            for matrix in (layer.lora_A, layer.lora_B):
                matrix.normal_(std=0.3, generator=generator)
    lora.save_adapter(model, folder)
    return folder


@contextlib.contextmanager
def running(app):
    """Serve an application on a free port of the loopback."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(app, http=protocol(), log_level="error", access_log=False, timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()


@pytest.fixture(scope="session")
def adapter_folder(tmp_path_factory):
    """A folder with two adapters, from which the server may load."""
    folder = tmp_path_factory.mktemp("adapters")
    write_adapter(folder / "one", 1)
    write_adapter(folder / "two", 2)
    return folder


@pytest.fixture(scope="session")
def build_app(adapter_folder):
    """Build an application over a model of its own."""

    def build(*, limits=None, **access):
        from lorakeet.infer.load import NamedAdapter
        from lorakeet.serve.app import create_app
        from lorakeet.serve.served import Served

        model, tokenizer = build_model(), trained("bpe-chatml")
        served = Served("tiny", model, tokenizer, template_for(tokenizer, name="chatml"))
        for name in ("one", "two"):
            adapter = read_adapter(model, adapter_folder / name)
            served.adapters[name] = NamedAdapter(adapter, str(adapter_folder / name))
        return create_app(served, access=Access(adapter_folders=(adapter_folder,), **access), limits=limits or Limits())

    return build


@pytest.fixture(scope="module")
def app(build_app):
    """The application of most tests."""
    return build_app()


@pytest.fixture(scope="module")
def url(app):
    """Where it is served."""
    with running(app) as address:
        yield address
