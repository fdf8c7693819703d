"""An adapter of a Llama from its own checkpoint: here and in PEFT on transformers, both ways, merged, and over four bits."""

import peft
import pytest
import torch
import transformers

from lorakeet.config import LoraConfig, QuantizationConfig
from lorakeet.exports.merge import merged_tensors
from lorakeet.lora.adapter import load_adapter, save_adapter
from lorakeet.lora.inject import inject
from lorakeet.models import weights
from lorakeet.quant.loading import load_quantized_model
from tests.parity.test_split_projections import IDS, logits, randomise, relative

pytestmark = pytest.mark.filterwarnings("ignore")
CASES = [{"target_modules": ["q_proj", "v_proj", "down_proj"]}, {"target_modules": "all-linear", "use_dora": True}]


@pytest.fixture
def directory(tmp_path, monkeypatch):
    monkeypatch.setenv("LORAKEET_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    config = transformers.LlamaConfig(vocab_size=97, num_key_value_heads=2, initializer_range=0.1, **sizes, **ids)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.mark.parametrize("options", CASES)
def test_a_llamas_adapter_is_the_same_in_peft(directory, options, tmp_path):
    model = randomise(inject(weights.load_model(directory), LoraConfig(r=4, **options)))
    save_adapter(model, tmp_path / "adapter")
    base = transformers.AutoModelForCausalLM.from_pretrained(directory)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    expected = theirs(IDS[None]).logits[0]
    assert relative(logits(model), expected) < 1e-5
    assert relative(logits(weights.load_model(directory)), expected) > 1e-3
    theirs.save_pretrained(tmp_path / "theirs")
    outline = weights.outline(directory)
    load_adapter(outline, tmp_path / "theirs")
    state = merged_tensors(outline, torch.float32, weights.each_parameter(outline, directory))
    weights.save_weights(state, tmp_path / "merged", outline.config, dtype=torch.float32)
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert relative(merged(IDS[None]).logits[0], expected) < 1e-5
    four = load_quantized_model(directory, QuantizationConfig(load_in_4bit=True), dtype=torch.float32, device="cpu")
    load_adapter(four, tmp_path / "adapter")
    assert relative(logits(four), expected) < 0.3  # what rounding to 4 bits takes from so small a model
