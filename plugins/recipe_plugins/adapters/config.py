"""Settings of the adapters, and the protocol of their kind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Protocol

from pydantic import Field

from recipe_runner import Config

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from recipe_plugins.training.estimate import Shape
    from recipe_plugins.training.quantised import Quantisation

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


class AdapterMethod(Protocol):
    """Its config has, for `plan`, `trainable(shape: Shape) -> int`, the parameters of the adapter, and
    `base_bytes(shape: Shape, each: int) -> int`, of the frozen base where the stage's precision has `each` bytes."""

    def quantisation(self) -> Quantisation | None:
        """How the frozen base is stored; `None` leaves it in the stage's precision."""
        ...

    def attach(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int) -> PeftModel:
        """`model` with the adapter, in a state that computes the same; only the adapter's parameters train, in fp32."""
        ...


class LoraAdapterConfig(Config):
    """LoRA (Hu et al. 2021, arXiv:2106.09685, 4.1): W + (alpha / r) · B A, with B zero and A Gaussian at the start."""

    r: Annotated[int, Field(ge=1, description="rank")] = 16
    alpha: Annotated[float, Field(gt=0, description="the update is scaled by alpha / r")] = 32.0
    dropout: Annotated[float, Field(ge=0, lt=1, description="of what goes into A")] = 0.0
    targets: Annotated[
        Literal["all-linear", "attention"] | list[str],
        Field(description="layers by the end of their name, or all of a sort; the head is never among all"),
    ] = "all-linear"
    rows: Annotated[
        Literal["none", "turn-tokens"],
        Field(description="rows of the embedding and the head that train beside, for tokens the base hardly knows"),
    ] = "none"

    def trainable(self, shape: Shape) -> int:
        """Parameters of the adapter; of the turn tokens there are two."""
        chosen = [sizes for name, sizes in shape.linear.items() if self._adapts(name)]
        block = sum(self.r * (outputs + inputs) for outputs, inputs in chosen)
        tables = 0 if self.rows == "none" else 1 if shape.tied else 2
        return shape.layers * block + 2 * tables * shape.linear["q_proj"][1]

    def _adapts(self, name: str) -> bool:
        if self.targets == "all-linear":
            return True
        return name in (ATTENTION if self.targets == "attention" else self.targets)

    def base_bytes(self, shape: Shape, each: int) -> int:
        """All of the base in the stage's precision."""
        return each * shape.parameters


class QloraAdapterConfig(LoraAdapterConfig):
    """QLoRA (Dettmers et al. 2023, arXiv:2305.14314, section 3): the frozen base in NF4, through bitsandbytes."""

    double_quantisation: Annotated[bool, Field(description="of the blocks' scales too")] = True
    compute: Annotated[
        Literal["bfloat16", "float32"], Field(description="dtype of the products with dequantised weights")
    ] = "bfloat16"
    storage: Annotated[
        Literal["uint8", "bfloat16"], Field(description="dtype that packed bits are kept as; bfloat16 can be sharded")
    ] = "bfloat16"

    def base_bytes(self, shape: Shape, each: int) -> int:
        """Half a byte a weight, and for each block of 64 a scale: fp32, or 8 bits and a 256th of an fp32 one."""
        linear = shape.layers * sum(outputs * inputs for outputs, inputs in shape.linear.values())
        scales = linear // 64 + 4 * (linear // 64 // 256) if self.double_quantisation else 4 * (linear // 64)
        return linear // 2 + scales + each * (shape.parameters - linear)
