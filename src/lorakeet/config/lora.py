"""Where LoRA goes and how large it is.

data in: keys of `peft_config` → out: a frozen LoraConfig. Which modules its names mean is `lora/targets.py`'s.
"""

import math
import re
from collections.abc import Iterable
from typing import Any, ClassVar, Literal

from pydantic import Field

from lorakeet.config.foreign_keys import LORA_KEYS, ForeignKey
from lorakeet.config.strict import OUT_OF_RANGE, StrictModel
from lorakeet.errors import ConfigError


class EvaConfig(StrictModel):
    """How EVA finds the directions that its adapters start with, with the names of peft.EvaConfig."""

    section: ClassVar[str] = "peft_config.eva_config"
    foreign_keys: ClassVar = {
        "label_mask_value": ForeignKey("Set use_label_mask; spans say what is trained on", (-100,)),
        "adjust_scaling_factors": ForeignKey("Every layer keeps its rank, and with it its scale", (True, False)),
        "whiten": ForeignKey(
            "Leave it out; PEFT divides the directions that q, k and v share by their values three times", (False,)
        ),
    }

    rho: float = Field(default=2.0, ge=1, allow_inf_nan=False)
    """How many times its rank a layer may get at the cost of others. The default is PEFT's; only 1 is supported."""
    tau: float = Field(default=0.99, gt=0, lt=1)
    """A direction has settled if the cosine between it before and after a step is at least this."""
    use_label_mask: bool = True
    """Look at the tokens alone that are trained on; false: at all tokens of the rows."""


class LoraConfig(StrictModel):
    """Which layers get LoRA, and its rank and scale, with the names of peft.LoraConfig.

    The update of a layer is `scaling * B @ A` with `scaling = lora_alpha / r` (or `lora_alpha / sqrt(r)` with
    `use_rslora`), so doubling `lora_alpha` acts much like doubling the adapter's learning rate.
    Source: Hu et al. 2021, arXiv:2106.09685; rsLoRA: Kalajdzievski 2023, arXiv:2312.03732.
    """

    section: ClassVar[str] = "peft_config"
    codes: ClassVar = {
        "r": ("E-CFG-37", "Use for example 16"),
        "target_modules": ("E-CFG-42", 'Use "all-linear", or a list of names'),
    }
    foreign_keys: ClassVar = LORA_KEYS
    none_is_default: ClassVar[frozenset[str]] = frozenset({"target_modules", "exclude_modules"})

    r: int = Field(default=16, ge=1, le=1024)
    """Rank of the update."""
    lora_alpha: float = Field(default=32, gt=0, allow_inf_nan=False)
    """Scale of the update before it is divided by the rank."""
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the input of the LoRA branch, while training."""
    target_modules: str | list[str] = "all-linear"
    """Module names (the last parts of their paths), or "all-linear" for every linear layer but the output head.

    Names are literal; a regular expression is refused, since it can match by accident or stall."""
    exclude_modules: list[str] = Field(default_factory=list)
    """Module names never to touch."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Which biases train along."""
    modules_to_save: list[str] | None = None
    """Modules trained in full and saved with the adapter."""
    ensure_weight_tying: bool = False
    """Train a module of modules_to_save as one with the module that its weight is tied to, as embedding and head are."""
    trainable_token_indices: list[int] | dict[str, list[int]] | None = None
    """Ids of tokens whose embedding trains in full, alone: a list, or {name of the embedding: list}."""
    use_rslora: bool = False
    """Divide lora_alpha by sqrt(r) instead of r."""
    use_dora: bool = False
    """Train the length of each row of weight and update beside its direction (DoRA); for linear layers.

    Source: Liu et al. 2024, arXiv:2402.09353."""
    rank_pattern: dict[str, int] = Field(default_factory=dict)
    """Ranks of single modules: {module path or its end: r}."""
    alpha_pattern: dict[str, float] = Field(default_factory=dict)
    """lora_alpha of single modules: {module path or its end: lora_alpha}."""
    layers_to_transform: list[int] | int | None = None
    """Only these layer indices."""
    layers_pattern: str | list[str] | None = None
    """Name of the list of layers that layers_to_transform counts in, if it is not found by itself."""
    fan_in_fan_out: bool = False
    """The replaced layers store their weight as (in, out), as GPT-2's Conv1D does."""
    init_lora_weights: bool | str = True
    """Start as the identity: A random, B zero. False draws B at random too, which only tests want.

    "pissa" starts with the weight's principal part instead, and "pissa_niter_16" with a fast approximation of it;
    "olora" with a part of its QR decomposition; "loftq", over a quantised base, with what rounding took from the weight.
    "eva" starts A with the directions that the layer's inputs vary in most on the run's rows; it needs eva_config."""
    eva_config: EvaConfig | None = None
    """For init_lora_weights "eva" alone, and needed there: `{rho: 1.0}`, with tau and use_label_mask if you like."""
    task_type: str | None = "CAUSAL_LM"
    """Written to adapter_config.json for PEFT; None for modules that are no language model."""

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        targets = [self.target_modules] if isinstance(self.target_modules, str) else self.target_modules
        if not targets:
            raise ConfigError("E-CFG-42", "target_modules is empty", place="peft_config", fix='Use "all-linear"')
        for key in ("exclude_modules", "modules_to_save", "rank_pattern", "alpha_pattern"):
            _require_names(key, getattr(self, key) or ())
        _require_names("target_modules", targets)
        initial = self.init_lora_weights
        if isinstance(initial, str) and not re.fullmatch(r"pissa(_niter_[0-9]{1,3})?|olora|loftq|eva", initial):
            allowed = "true, false, pissa, pissa_niter_N, olora, loftq, eva"
            raise _out_of_range(OUT_OF_RANGE, "init_lora_weights", initial, allowed)
        _require_eva(self)
        patterns = self.layers_pattern or []
        _require_names("layers_pattern", [patterns] if isinstance(patterns, str) else patterns)
        for key, r in self.rank_pattern.items():
            if not 1 <= r <= 1024:
                raise _out_of_range("E-CFG-37", f"rank_pattern.{key}", r, "a whole number from 1 to 1024")
        for key, alpha in self.alpha_pattern.items():
            if not (0 < alpha < math.inf):
                raise _out_of_range(OUT_OF_RANGE, f"alpha_pattern.{key}", alpha, "a number above 0")


def _require_names(key: str, names: Iterable[str]) -> None:
    """Refuse whatever is not a literal module name; PEFT lets a leading ^ of a pattern demand the whole path."""
    for name in names:
        plain = name.removeprefix("^") if key.endswith("_pattern") else name
        if not all(part.replace("-", "").replace("_", "").isalnum() for part in plain.split(".")):
            raise ConfigError(
                "E-CFG-43",
                f"{name[:80]!r} is not a module name",
                place=f"peft_config.{key}",
                fix="List the names; regular expressions are not read",
            )


def _require_eva(config: LoraConfig) -> None:
    """Refuse EVA with ranks that move from layer to layer, which PEFT does unless told otherwise, and its keys without it."""
    eva = config.eva_config or EvaConfig()
    if config.init_lora_weights == "eva" and eva.rho != 1:
        raise ConfigError(
            "E-CFG-108",
            f"is {eva.rho}{'' if config.eva_config else ' by default, as in PEFT'}: that moves ranks from layer to layer, "
            "which is not supported",
            place="peft_config.eva_config.rho",
            fix="Set eva_config: {rho: 1.0}; every layer then keeps its rank",
        )
    if config.init_lora_weights != "eva" and config.eva_config is not None:
        raise ConfigError(
            "E-CFG-108",
            "is for init_lora_weights: eva alone",
            place="peft_config.eva_config",
            fix="Leave it out, or set init_lora_weights: eva",
        )


def _out_of_range(code: str, key: str, value: float | str, allowed: str) -> ConfigError:
    return ConfigError(code, f"is {value!r}; allowed: {allowed}", place=f"peft_config.{key}", fix="Correct the value")
