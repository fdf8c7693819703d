"""In how many bits the frozen base model is held.

data in: keys of `quantization_config` → out: a frozen QuantizationConfig, under transformers' names.
"""

from typing import Any, ClassVar, Literal

from lorakeet.config.strict import StrictModel
from lorakeet.errors import ConfigError


class QuantizationConfig(StrictModel):
    """How the base is quantised, with the names of transformers.BitsAndBytesConfig; by default it is not.

    The linear layers are; norms, embeddings and the output head keep 16 bits.
    Source: Dettmers et al. 2023, arXiv:2305.14314; 8 bits: Dettmers et al. 2022, arXiv:2208.07339.
    """

    section: ClassVar[str] = "quantization_config"

    load_in_4bit: bool = False
    """Hold the base in 4 bits: a quarter of the memory."""
    load_in_8bit: bool = False
    """Hold the base in 8 bits: half of the memory."""
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4"
    """The sixteen values: quantiles of a normal distribution, or a 4-bit floating-point number."""
    bnb_4bit_use_double_quant: bool = True
    """Quantise the blocks' scales too: 0.4 bits a weight less."""
    bnb_4bit_compute_dtype: Literal["bfloat16", "float32"] | None = None
    """What the model computes in; as training_config.bf16 says, or the machine does best, if nothing is said."""
    bnb_4bit_quant_storage: Literal["uint8"] = "uint8"
    """The type the packed weights are stored as."""

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        if self.load_in_4bit and self.load_in_8bit:
            raise ConfigError(
                "E-CFG-170", "load_in_4bit and load_in_8bit are both true", place="quantization_config", fix="Choose one"
            )

    @property
    def is_on(self) -> bool:
        """Whether the base is quantised at all."""
        return self.load_in_4bit or self.load_in_8bit
