"""Whether transformers 4 reads merged models as the installed version does: ids, logits, stops.

Run as `python -m tests.exports.transformers4 OTHER_PYTHON` with the interpreter of an environment that has transformers
4: this one merges tiny models and asks that one, which runs the second part of this file and shares torch with this.
"""

import json
import os
import site
import subprocess
import sys
import tempfile
from pathlib import Path

IDS = [(11 * i + 5) % 640 for i in range(40)]
MESSAGES = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Grüße,\n  two lines"}]
KINDS = {
    "plain": {},
    "tied": {"tie_word_embeddings": True},
    "window": {"sliding_window": 8},
    "partial": {"partial_rotary_factor": 0.5},
    "longrope": {
        "original_max_position_embeddings": 32,
        "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4},
    },
}


def answer(directory):
    """Load a model directory and say what comes of it; in either environment."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(directory, torch_dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    with torch.inference_mode():
        logits = model(torch.tensor([IDS])).logits[0]
    return {
        "version": transformers.__version__,
        "ids": list(tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)),
        "stops": model.generation_config.eos_token_id,
        "logits": logits.tolist(),
    }


def merged_models(folder):
    """Write a merged model of each kind."""
    from tests.exports.conftest import merge, write_adapter, write_base

    os.environ["LORAKEET_CACHE"] = str(folder / "cache")
    for kind, changes in KINDS.items():
        base = write_base(folder / kind / "base", **changes)
        config = base / "tokenizer_config.json"
        newer = {"tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["<|end|>"]}
        config.write_text(json.dumps({**json.loads(config.read_text()), **newer}))
        adapter, _ = write_adapter(folder / kind / "adapter", base)
        yield kind, merge(base, adapter, folder / kind / "merged").path


def main(python):
    """Compare both versions; return 1 where they differ."""
    import torch

    failed = False
    with tempfile.TemporaryDirectory() as scratch:
        directories = dict(merged_models(Path(scratch)))
        environment = {**os.environ, "LORAKEET_BORROW": os.pathsep.join(site.getsitepackages())}
        command = [python, __file__, *map(str, directories.values())]
        asked = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        for (kind, directory), line in zip(directories.items(), asked.stdout.splitlines(), strict=True):
            ours, theirs = answer(directory), json.loads(line)
            one, two = torch.tensor(ours["logits"]), torch.tensor(theirs["logits"])
            difference = ((one - two).norm() / one.norm()).item()
            is_same = ours["ids"] == theirs["ids"] and ours["stops"] == theirs["stops"]
            failed |= not is_same or difference > 1e-5
            said = "same ids and stops" if is_same else "OTHER IDS OR STOPS"
            print(f"{kind}: transformers {theirs['version']} beside {ours['version']}: {said}, logits within {difference:.1e}")
    return int(failed)


if __name__ == "__main__":
    if "LORAKEET_BORROW" in os.environ:
        sys.path.extend(os.environ["LORAKEET_BORROW"].split(os.pathsep))  # behind its own packages
        for path in sys.argv[1:]:
            print(json.dumps(answer(path)))
    else:
        sys.exit(main(sys.argv[1]))
