"""inject, save and load against the installed PEFT, on small transformers models of three families."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM

import lorakeet as lora
from lorakeet.errors import AdapterError
from lorakeet.lora.inject import lora_layers

pytestmark = pytest.mark.filterwarnings("ignore")

COMMON = {"vocab_size": 96, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
WIDE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
IDS = torch.arange(3, 27).view(2, 12)


def llama() -> nn.Module:
    return LlamaForCausalLM(LlamaConfig(**COMMON, **WIDE, num_key_value_heads=2, attention_bias=True))


def phi3() -> nn.Module:
    return Phi3ForCausalLM(Phi3Config(**COMMON, **WIDE, num_key_value_heads=2))


def gpt2() -> nn.Module:
    return GPT2LMHeadModel(GPT2Config(**COMMON, n_embd=32, n_layer=3, n_head=4, n_positions=32))


class Torchish(nn.Module):
    """Every other kind of layer that both libraries can adapt."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(96, 16)
        self.conv1 = nn.Conv1d(16, 16, 3, padding=1)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.conv2 = nn.Conv2d(1, 4, (3, 2), stride=2)
        self.conv3 = nn.Conv3d(1, 2, (1, 3, 3), bias=False)
        self.grouped = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.head = nn.Linear(4, 5)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.conv1(self.embed(ids).transpose(1, 2)).transpose(1, 2)
        hidden = self.attention(hidden, hidden, hidden)[0][:, None]
        hidden = hidden + self.conv3(nn.functional.pad(hidden, (1, 1, 1, 1))[:, None])[:, :1, 0]
        return self.head(self.grouped(self.conv2(hidden)).mean((2, 3)))


MODELS: dict[str, Callable[[], nn.Module]] = {"llama": llama, "phi3": phi3, "gpt2": gpt2, "torch": Torchish}

CASES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"target_modules": "all-linear"}),
    ("llama", {"target_modules": ["q_proj", "v_proj"], "use_rslora": True}),
    ("llama", {"target_modules": ["self_attn.k_proj", "down_proj"], "exclude_modules": ["layers.1.mlp.down_proj"]}),
    ("llama", {"target_modules": ["q_proj", "up_proj"], "rank_pattern": {"layers.1.self_attn.q_proj": 2, "up_proj": 3}}),
    ("llama", {"target_modules": ["q_proj"], "alpha_pattern": {"^model.layers.0.self_attn.q_proj": 3, "q_proj": 5}}),
    ("llama", {"target_modules": ["q_proj"], "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"0.self_attn.q_proj": 8}}),
    ("llama", {"target_modules": ["q_proj", "lm_head"], "layers_to_transform": [0, 2]}),
    ("llama", {"target_modules": ["o_proj"], "layers_to_transform": 1, "layers_pattern": "layers"}),
    ("llama", {"target_modules": ["q_proj", "k_proj"], "bias": "lora_only"}),
    ("llama", {"target_modules": ["q_proj"], "bias": "all"}),
    ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "model.norm"]}),
    ("phi3", {"target_modules": "all-linear"}),
    ("phi3", {"target_modules": ["qkv_proj", "gate_up_proj"], "lora_alpha": 7}),
    ("phi3", {"target_modules": ["o_proj", "embed_tokens"]}),
    ("gpt2", {"target_modules": "all-linear", "fan_in_fan_out": True}),
    ("gpt2", {"target_modules": ["c_attn"], "bias": "lora_only", "fan_in_fan_out": True}),
    ("gpt2", {"target_modules": ["attn.c_proj", "wpe"], "rank_pattern": {"c_proj": 2}}),
    ("torch", {"target_modules": ["embed", "conv1", "conv2", "conv3", "head"]}),
    ("torch", {"target_modules": ["attention", "grouped"], "task_type": None}),
    ("torch", {"target_modules": ["attention"], "bias": "all", "task_type": None}),
]


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name]().eval()


def output(model: nn.Module) -> Tensor:
    result = model(IDS)
    return result if isinstance(result, Tensor) else result.logits


def pair(name: str, options: dict[str, Any]) -> tuple[nn.Module, Any]:
    """Return our injected model and PEFT's, from the same base."""
    values = {"r": 4, "lora_alpha": 16, "task_type": "CAUSAL_LM", **options}
    if name == "torch":
        values["task_type"] = None
    ours = lora.inject(build(name), lora.LoraConfig(**values))
    return ours, peft.get_peft_model(build(name), peft.LoraConfig(**values)).eval()


def fill(model: nn.Module, scale: float = 0.1) -> None:
    """Return everything that trains random values, as training would."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter) * scale)


def trainable(model: nn.Module) -> list[tuple[int, ...]]:
    return sorted(tuple(parameter.shape) for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize(("name", "options"), CASES, ids=lambda value: str(value)[:90])
def test_matches_peft(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    """Same trainable parameters, same saved keys and shapes, same outputs, in both directions through files."""
    ours, theirs = pair(name, options)
    assert torch.equal(output(ours), output(build(name)))
    assert trainable(ours) == trainable(theirs)
    fill(ours)
    fill(theirs)
    expected, their_expected = output(ours).detach(), output(theirs).detach()
    assert not torch.equal(expected, output(build(name)))

    # PEFT adds the untrained base weight of an embedding it adapts, which we have no use for.
    theirs.save_pretrained(tmp_path / "theirs", save_embedding_layers=False)
    lora.save_adapter(ours, tmp_path / "ours")
    mine, other = (load_file(tmp_path / side / "adapter_model.safetensors") for side in ("ours", "theirs"))
    assert {key: value.shape for key, value in mine.items()} == {key: value.shape for key, value in other.items()}

    in_peft = peft.PeftModel.from_pretrained(build(name), tmp_path / "ours").eval()
    torch.testing.assert_close(output(in_peft).detach(), expected, rtol=1e-5, atol=1e-6)
    here = build(name)
    lora.load_adapter(here, tmp_path / "theirs")
    torch.testing.assert_close(output(here).detach(), their_expected, rtol=1e-5, atol=1e-6)
    back = build(name)
    lora.load_adapter(back, tmp_path / "ours")
    assert torch.equal(output(back), expected)


@pytest.mark.parametrize("name", ["llama", "phi3", "gpt2"])
def test_ten_steps_of_training_match_peft(name: str) -> None:
    ours, theirs = pair(name, {"target_modules": "all-linear", "fan_in_fan_out": name == "gpt2"})
    inner = theirs.base_model.model
    for path, layer in lora_layers(ours):
        other = inner.get_submodule(path)
        other.lora_A["default"].weight.data.copy_(layer.lora_A)
        other.lora_B["default"].weight.data.copy_(layer.lora_B)
    losses: list[list[float]] = []
    for model in (ours, theirs):
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
        losses.append([])
        for _ in range(10):
            loss = model(input_ids=IDS, labels=IDS).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[0][-1] < losses[0][0]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_adapters_stay_float32_on_a_bfloat16_base() -> None:
    ours = lora.inject(build("phi3").bfloat16(), lora.LoraConfig(r=4))
    assert {p.dtype for p in ours.parameters() if p.requires_grad} == {torch.float32}
    fill(ours)
    output(ours).sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in ours.parameters() if p.requires_grad)


def test_bfloat16_is_hardly_further_from_float32_than_peft(tmp_path: Path) -> None:
    """PEFT computes the update in float32, we in bfloat16; for updates of a trained size that hardly shows."""
    exact = lora.inject(build("phi3"), lora.LoraConfig(r=4))
    fill(exact, scale=0.01)
    lora.save_adapter(exact, tmp_path)
    expected = output(exact).detach()
    base, their_base = build("phi3").bfloat16(), build("phi3").bfloat16()
    lora.load_adapter(base, tmp_path)
    theirs = peft.PeftModel.from_pretrained(their_base, tmp_path).eval()
    error = (output(base).float() - expected).abs().mean()
    their_error = (output(theirs).float() - expected).abs().mean()
    assert error <= their_error * 1.1


def test_modules_to_save_that_peft_matched_by_their_endings_load(tmp_path: Path) -> None:
    """PEFT takes "norm" for input_layernorm too; the file says which modules there are."""
    theirs = peft.get_peft_model(build("llama"), peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["norm"]))
    fill(theirs)
    theirs.eval().save_pretrained(tmp_path)
    here = build("llama")
    lora.load_adapter(here, tmp_path)
    torch.testing.assert_close(output(here), output(theirs))


def test_base_weights_that_peft_saves_along_must_be_the_models(tmp_path: Path) -> None:
    """PEFT's default for an adapted embedding."""
    _, theirs = pair("phi3", {"target_modules": ["embed_tokens", "qkv_proj"]})
    fill(theirs)
    theirs.save_pretrained(tmp_path)
    assert any(key.endswith("base_layer.weight") for key in load_file(tmp_path / "adapter_model.safetensors"))
    here = build("phi3")
    lora.load_adapter(here, tmp_path)
    torch.testing.assert_close(output(here), output(theirs))
    other = build("phi3")
    other.get_input_embeddings().weight.data.mul_(2)
    with pytest.raises(AdapterError, match="E-ADPT-64"):
        lora.load_adapter(other, tmp_path)


def test_config_file_has_what_peft_requires(tmp_path: Path) -> None:
    ours, _ = pair("llama", {"target_modules": "all-linear", "rank_pattern": {"q_proj": 2}})
    lora.save_adapter(ours, tmp_path, base_model_name_or_path="some/base")
    fields = json.loads((tmp_path / "adapter_config.json").read_text())
    assert fields["peft_type"] == "LORA"
    assert fields["base_model_name_or_path"] == "some/base"
    assert fields["target_modules"] == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert fields["rank_pattern"] == {"q_proj": 2}
    assert set(fields) <= set(peft.LoraConfig().to_dict())


def test_torchs_encoder_keeps_the_update_in_eval_mode_where_peft_drops_it() -> None:
    """torch's inference path reads linear1.weight and linear2.weight; the docs name this difference."""

    def encoder() -> nn.Module:
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        return nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

    values: dict[str, Any] = {"r": 2, "target_modules": ["linear1", "linear2"], "task_type": None}
    models = (lora.inject(encoder(), lora.LoraConfig(**values)), peft.get_peft_model(encoder(), peft.LoraConfig(**values)))
    x, errors = torch.randn(2, 5, 8), []
    for model in models:
        fill(model)
        trained = model.train()(x)
        with torch.no_grad():
            errors.append((model.eval()(x) - trained).abs().max().item())
    assert errors[0] < 1e-5
    assert errors[1] > 1e-2, "PEFT has been mended: correct docs/loralib.md"


def test_merged_model_equals_pefts(tmp_path: Path) -> None:
    ours, _ = pair("llama", {"target_modules": "all-linear"})
    fill(ours)
    lora.save_adapter(ours, tmp_path)
    theirs = peft.PeftModel.from_pretrained(build("llama"), tmp_path).merge_and_unload()
    lora.merge_and_unload(ours)
    mine, other = ours.state_dict(), theirs.state_dict()
    assert mine.keys() == other.keys()
    for key in mine:
        torch.testing.assert_close(mine[key], other[key])
