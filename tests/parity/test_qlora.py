"""PEFT's QLoRA on transformers and bitsandbytes, on the CPU: the same numbers, and adapters that go both ways."""

import peft
import pytest
import torch
import torch.nn.functional as F
import transformers

from lorakeet.config import LoraConfig, QuantizationConfig
from lorakeet.lora.adapter import load_adapter, save_adapter
from lorakeet.lora.inject import inject
from lorakeet.quant.loading import load_quantized_model

pytestmark = pytest.mark.filterwarnings("ignore:.*:FutureWarning", "ignore:.*:DeprecationWarning", "ignore:.*:UserWarning")

LORA = {"r": 4, "lora_alpha": 12, "target_modules": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]}
NF4 = QuantizationConfig(load_in_4bit=True)
# Widths that are multiples of 64: bitsandbytes' CPU code misreads scales at others that are multiples of 16.
CONFIG = transformers.Phi3Config(
    vocab_size=97,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    original_max_position_embeddings=64,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=2,
    initializer_range=0.2,
)


@pytest.fixture
def directory(tmp_path, monkeypatch):
    monkeypatch.setenv("LORAKEET_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    transformers.Phi3ForCausalLM(CONFIG).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def their_base(directory):
    quantization = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.float32
    )
    return transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, quantization_config=quantization, device_map="cpu"
    )


def our_base(directory):
    return load_quantized_model(directory, NF4, dtype=torch.float32)


def our_logits(model, ids):
    borders = torch.tensor([0, len(ids)], dtype=torch.int32)
    return F.linear(model(ids, torch.arange(len(ids)), borders), model.lm_head.weight)


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


def test_the_quantised_bases_are_the_same(directory):
    theirs, ours = their_base(directory), our_base(directory)
    for i in range(CONFIG.num_hidden_layers):
        for name in ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"):
            mine, other = (m.get_submodule(f"model.layers.{i}.{name}").state_dict() for m in (ours, theirs))
            assert mine.keys() == other.keys()
            assert all(torch.equal(mine[key], other[key]) for key in ("weight", "weight.absmax", "weight.nested_absmax"))


def test_an_adapter_trained_by_peft_matches_here(directory, tmp_path):
    ids = torch.arange(3, 40)
    theirs = peft.get_peft_model(their_base(directory), peft.LoraConfig(**LORA, task_type="CAUSAL_LM"))
    optimizer = torch.optim.AdamW([param for param in theirs.parameters() if param.requires_grad], lr=1e-2)
    theirs.train()
    for _ in range(3):
        theirs(ids[None], labels=ids[None]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    # Still in training mode: in eval() bitsandbytes' CPU code repacks the weights for an inexact kernel.
    with torch.no_grad():
        expected = theirs(ids[None]).logits[0]
    theirs.save_pretrained(tmp_path / "adapter")
    ours = our_base(directory)
    plain = our_logits(ours, ids)
    load_adapter(ours, tmp_path / "adapter")
    assert relative(our_logits(ours.eval(), ids), expected) < 1e-5
    assert relative(plain, expected) > 1e-2


def test_our_adapter_matches_in_peft_with_its_gradients(directory, tmp_path):
    ids = torch.arange(3, 40)
    config = LoraConfig(**LORA)
    ours = inject(our_base(directory), config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, param in ours.named_parameters():
            if "lora_" in name:
                param.normal_(0, 0.1, generator=generator)
    save_adapter(ours, tmp_path / "adapter", config=config, base_model_name_or_path=str(directory))
    theirs = peft.PeftModel.from_pretrained(their_base(directory), tmp_path / "adapter", is_trainable=True).train()
    logits = theirs(ids[None]).logits[0]
    expected = F.cross_entropy(logits[:-1], ids[1:], reduction="sum")
    found_logits = our_logits(ours.train(), ids)
    found = F.cross_entropy(found_logits[:-1], ids[1:], reduction="sum")
    assert relative(found_logits, logits) < 1e-5
    expected.backward()
    found.backward()
    gradients = {name.replace(".default.weight", ""): p.grad for name, p in theirs.named_parameters() if "lora_" in name}
    for name, param in ours.named_parameters():
        if "lora_" in name:
            assert relative(param.grad, gradients[f"base_model.model.{name}"]) < 1e-4
