"""Layers inside what PyTorch does with modules: copies, casts, autocast, compilation, several processes."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn

import lorakeet as lora

Build = Callable[[], nn.Module]
Fill = Callable[[nn.Module], nn.Module]

LAYERS: dict[str, tuple[Callable[[], Any], Callable[[], Tensor]]] = {
    "linear": (lambda: lora.Linear(8, 8, r=2, lora_dropout=0.0), lambda: torch.randn(4, 8)),
    "merged": (lambda: lora.MergedLinear(8, 12, r=2, enable_lora=[True, False, True]), lambda: torch.randn(4, 8)),
    "embedding": (lambda: lora.Embedding(9, 8, r=2), lambda: torch.arange(9)),
    "conv1d": (lambda: lora.Conv1d(4, 6, 3, r=2), lambda: torch.randn(2, 4, 9)),
    "conv2d": (lambda: lora.Conv2d(4, 6, 3, r=2, groups=2), lambda: torch.randn(2, 4, 9, 9)),
    "conv3d": (lambda: lora.Conv3d(2, 4, 2, r=2), lambda: torch.randn(2, 2, 4, 4, 4)),
    "attention": (
        lambda: lora.inject(
            nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True),
            lora.LoraConfig(r=2, lora_alpha=2, target_modules=["self_attn", "linear1"]),
        ),
        lambda: torch.randn(2, 5, 8),
    ),
}


@pytest.fixture(params=LAYERS)
def layer(request: pytest.FixtureRequest, fill: Fill) -> tuple[Any, Tensor]:
    build, x = LAYERS[request.param]
    torch.manual_seed(0)
    return fill(build()), x()


@pytest.mark.parametrize("mode", [True, False])
def test_pickle_and_deepcopy_keep_everything(layer: tuple[Any, Tensor], mode: bool) -> None:
    module, x = layer
    module.train(mode)
    expected = module(x)
    for twin in (pickle.loads(pickle.dumps(module)), copy.deepcopy(module)):
        assert torch.equal(twin(x), expected)
        assert type(twin) is type(module)
        assert twin.state_dict().keys() == module.state_dict().keys()
        twin.train(not mode).train(mode)
        assert torch.equal(twin(x), expected)


@pytest.mark.parametrize("mode", [True, False])
def test_to_moves_and_casts(layer: tuple[Any, Tensor], mode: bool) -> None:
    module, x = layer
    module.train(mode)
    expected = module(x)
    module.to(torch.float64)
    result = module(x.double() if x.is_floating_point() else x)
    assert result.dtype == torch.float64
    torch.testing.assert_close(result.float(), expected, rtol=1e-4, atol=1e-5)
    module.train().to("meta")
    assert all(parameter.is_meta for parameter in module.parameters())


def test_autocast_matches_float32(layer: tuple[Any, Tensor]) -> None:
    module, x = layer
    expected = module(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = module(x)
    torch.testing.assert_close(result.float(), expected, rtol=5e-2, atol=1e-1)
    result.float().sum().backward()
    gradients = {name: p.grad for name, p in module.named_parameters() if "lora_" in name}
    assert gradients
    assert all(grad is not None and grad.dtype == torch.float32 for grad in gradients.values())


@pytest.mark.parametrize("name", ["linear", "merged", "embedding", "conv2d"])
def test_compiles_as_one_graph(name: str, fill: Fill) -> None:
    build, make_x = LAYERS[name]
    module, x = fill(build()), make_x()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), module(x))
    compiled(x).sum().backward()
    assert bool(module.lora_B.grad.any())


def test_a_decoder_layer_compiles_with_dynamic_shapes_in_bfloat16(toy: Build, fill: Fill) -> None:
    model = fill(lora.inject(toy().bfloat16(), lora.LoraConfig(r=2)))
    block = model.get_submodule("model.layers.0")
    compiled = torch.compile(block, fullgraph=True, dynamic=True, backend="aot_eager")
    for length in (3, 7):
        x = torch.randn(length, 8, dtype=torch.bfloat16)
        torch.testing.assert_close(compiled(x), block(x), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("nested", [False, True])
def test_torchs_fast_path_sees_the_update(nested: bool, fill: Fill) -> None:
    """In eval mode without gradients torch reads the weights instead of calling the layers."""
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), 2)
    names = ["self_attn", "linear1", "linear2"] if nested else ["out_proj", "linear1"]
    fill(lora.inject(encoder, lora.LoraConfig(r=2, target_modules=names)))
    x = torch.randn(2, 5, 8)
    slow = encoder.train()(x)
    encoder.eval()
    with torch.no_grad():
        torch.testing.assert_close(encoder(x), slow)
    lora.merge_and_unload(encoder)
    with torch.no_grad():
        torch.testing.assert_close(encoder(x), slow)


def train_steps(model: nn.Module, batches: list[Tensor]) -> list[Tensor]:
    """Train five steps and return the parameters that train."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trainable, lr=0.1)
    for batch in batches:
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        optimizer.step()
    return [parameter.detach().clone() for parameter in trainable]


def model_for_ddp() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(lora.Linear(8, 12, r=2), nn.ReLU(), lora.MergedLinear(12, 8, r=2, enable_lora=[True, False]))
    lora.mark_only_lora_as_trainable(model)
    return model


def batches_for_ddp() -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(6, 8, generator=generator) for _ in range(5)]


def run_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    model = nn.parallel.DistributedDataParallel(model_for_ddp())
    result = train_steps(model, [batch.chunk(2)[rank] for batch in batches_for_ddp()])
    if rank == 0:
        Path(folder, "result").write_bytes(pickle.dumps([tensor.tolist() for tensor in result]))
    torch.distributed.destroy_process_group()


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    mp.spawn(run_rank, args=(str(tmp_path),), nprocs=2)
    expected = train_steps(model_for_ddp(), batches_for_ddp())
    result = pickle.loads((tmp_path / "result").read_bytes())
    assert len(result) == 4
    for mine, truth in zip(result, expected, strict=True):
        torch.testing.assert_close(torch.tensor(mine), truth, rtol=1e-5, atol=1e-7)
