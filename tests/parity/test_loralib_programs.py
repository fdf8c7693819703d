"""The same program text under both libraries, with only the import line changed, prints the same losses."""

import contextlib
import io

import pytest

README = """
import {library} as lora
import torch
from torch import nn

torch.manual_seed(0)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = lora.Embedding(50, 16, r=4)
        self.layer = lora.Linear(16, 32, r=16, lora_alpha=8, lora_dropout=0.1)
        self.head = nn.Linear(32, 50)

    def forward(self, x):
        return self.head(torch.relu(self.layer(self.embed(x))))

model = Net()
# This sets requires_grad to False for all parameters without the string "lora_" in their names
lora.mark_only_lora_as_trainable(model, bias="all")
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
for step in range(10):
    ids = torch.randint(0, 50, (4, 9))
    loss = nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(step, loss.item())
state, pretrained = lora.lora_state_dict(model, bias="all"), model.state_dict()
fresh = Net()
fresh.load_state_dict(pretrained, strict=False)
fresh.load_state_dict(state, strict=False)
model.eval()
fresh.eval()
print(model(ids).sum().item(), torch.equal(model(ids), fresh(ids)), sorted(state))
model.train()
print(sum(p.numel() for p in model.parameters() if p.requires_grad))
"""

GPT2 = """
import {library} as lora
import torch
from torch import nn
import torch.nn.functional as F

torch.manual_seed(1)

class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.c_attn = lora.MergedLinear(
            width, width * 3, r=4, lora_alpha=32, lora_dropout=0.1,
            enable_lora=[True, False, True], fan_in_fan_out={fan}, merge_weights=False,
        )
        self.c_proj = nn.Linear(width, width)

    def forward(self, x):
        q, k, v = [part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.c_attn(x).chunk(3, -1)]
        return self.c_proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))

class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), lora.Linear(4 * width, width, r=2))

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))

class GPT2(nn.Module):
    def __init__(self):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(64, 32), nn.Embedding(16, 32)
        self.h = nn.ModuleList([Block(32, 4) for _ in range(2)])
        self.ln_f = nn.LayerNorm(32)

    def forward(self, ids):
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1]))
        for block in self.h:
            x = block(x)
        return self.ln_f(x) @ self.wte.weight.T

model = GPT2()
lora.mark_only_lora_as_trainable(model)
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
for step in range(8):
    ids = torch.randint(0, 64, (3, 16))
    loss = F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(step, loss.item())
model.eval()
print(model(ids).sum().item(), sorted(lora.lora_state_dict(model, bias="lora_only")))
"""

CONVOLUTIONS = """
import {library} as lora
import torch
from torch import nn

torch.manual_seed(2)
model = nn.Sequential(
    lora.Conv2d(3, 8, 3, r=2, lora_alpha=4, padding=1), nn.ReLU(), nn.MaxPool2d(2),
    lora.Conv2d(8, 8, 3, r=2, groups=2, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    lora.Linear(8, 5, r=2),
)
lora.mark_only_lora_as_trainable(model)
optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
x, y = torch.randn(6, 3, 8, 8), torch.randint(0, 5, (6,))
for step in range(8):
    loss = nn.functional.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(step, loss.item())
model.eval()
print(nn.functional.cross_entropy(model(x), y).item(), sorted(model.state_dict()))
model.train()
print(type(model[0].conv).__name__, model[0].lora_A.shape, model[0].scaling, model[0].merged)
"""

PROGRAMS = {"readme": (README, {}), "gpt2": (GPT2, {"fan": "False"}), "convolutions": (CONVOLUTIONS, {})}


def printed(program: str, library: str, fields: dict[str, str]) -> list[str]:
    """Run the program text as its own module and return what it prints."""
    text = program.replace("{library}", library)
    for name, value in fields.items():
        text = text.replace("{" + name + "}", value)
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(text, f"<{library}>", "exec"), {"__name__": "program"})
    return output.getvalue().splitlines()


@pytest.mark.parametrize("name", PROGRAMS)
def test_program_prints_what_it_prints_under_loralib(name: str) -> None:
    program, fields = PROGRAMS[name]
    ours, theirs = printed(program, "lorakeet", fields), printed(program, "loralib", fields)
    assert len(theirs) >= 9
    assert ours == theirs


def test_gpt2_with_transposed_weights_prints_the_same_losses() -> None:
    """Our transposed weight lies contiguous in memory, so the last digits may differ."""
    ours, theirs = (printed(GPT2, library, {"fan": "True"}) for library in ("lorakeet", "loralib"))
    for mine, other in zip(ours[:8], theirs[:8], strict=True):
        assert float(mine.split()[1]) == pytest.approx(float(other.split()[1]), rel=1e-6)
    assert ours[8].split(" ", 1)[1] == theirs[8].split(" ", 1)[1]


def test_submodules_are_found_as_in_loralib() -> None:
    program = """
import {library} as lora
print(lora.layers.LoRALayer.__name__, lora.LoRALayer.__name__, lora.ConvLoRA.__name__)
print(lora.utils.lora_state_dict.__name__)
"""
    assert printed(program, "lorakeet", {}) == printed(program, "loralib", {})
