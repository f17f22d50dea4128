"""Settings of the adapters, and the protocol of their kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

from pydantic import Field, model_validator

from recipe_runner import Config

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from recipe_plugins.training.estimate import Shape
    from recipe_plugins.training.quantised import Quantisation

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
HEAD = "lm_head"


class AdapterMethod(Protocol):
    """Its config has, for `plan`, `trainable(shape: Shape) -> int | None`, the parameters of the adapter if they are
    known, and `base_bytes(shape: Shape, each: int) -> int`, of the frozen base where the stage's precision has `each`
    bytes.

    `tolerance` is by how much the adapted model may differ from its base before it is trained, as a share of the
    largest logit: 0 where an adapter begins at exactly nothing. It is for fp32; a base of fewer bits rounds more.
    """

    tolerance: float

    def quantisation(self) -> Quantisation | None:
        """How the frozen base is stored; `None` leaves it in the stage's precision."""
        ...

    def attach(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int, new_tokens: Sequence[int] = ()
    ) -> PeftModel:
        """`model` with the adapter, in a state that computes the same; only the adapter's parameters train, in fp32.

        `new_tokens` are the ids that the model has never seen.
        """
        ...


class TargetsConfig(Config):
    """Which layers are adapted."""

    targets: Annotated[
        Literal["all-linear", "attention"] | list[str],
        Field(description="linear layers by the end of their name, or all of a sort, but never the head or experts"),
    ] = "all-linear"


class LoraAdapterConfig(TargetsConfig):
    """LoRA (Hu et al. 2021, arXiv:2106.09685, 4.1): W + (alpha / r) · B A, with B zero and A Gaussian at the start."""

    r: Annotated[int, Field(ge=1, description="rank")] = 16
    alpha: Annotated[float, Field(gt=0, description="the update is scaled by alpha / r")] = 32.0
    dropout: Annotated[float, Field(ge=0, lt=1, description="of what goes into A")] = 0.0
    target_parameters: Annotated[
        list[str], Field(description="stacked weights too, such as those of experts, by the end of their name")
    ] = []
    modules: Annotated[
        list[Literal["embed_tokens", "lm_head"]],
        Field(description="what trains beside, whole: the embedding, the head; either means both where they are one"),
    ] = []
    rows: Annotated[
        Literal["none", "turn-tokens", "new-tokens"],
        Field(description="rows of the embedding and the head that train beside, for tokens the base hardly knows"),
    ] = "none"

    @model_validator(mode="after")
    def _once(self) -> LoraAdapterConfig:
        if self.modules and self.rows != "none":
            raise ValueError("modules trains every row; leave rows out, or modules")
        if self.target_parameters and self.dropout:
            raise ValueError("target_parameters: stacked weights take no dropout; set dropout to 0")
        return self

    def trainable(self, shape: Shape) -> int | None:
        """Parameters of the adapter; of the turn tokens there are two.

        Unknown for stacked weights and new tokens, for a target that is neither the head nor in every block, and on a
        model whose linear layers are not known.
        """
        if not shape.linear:
            return None
        hidden = shape.linear["q_proj"][1]
        layers = {**shape.linear, HEAD: (shape.head // hidden, hidden)}
        adapted = self._adapted(list(shape.linear))
        if self.target_parameters or self.rows == "new-tokens" or not layers.keys() >= adapted:
            return None
        layer = sum(self._of_layer(*shape.linear[name]) for name in adapted - {HEAD})
        head = self._of_layer(*layers[HEAD]) if HEAD in adapted else 0
        tables = 0 if self.rows == "none" else 1 if shape.tied else 2
        wide = 2 * tables * hidden
        if self.modules:
            wide = shape.head * (1 if shape.tied else len(set(self.modules)))
        return shape.layers * layer + head + wide

    def narrowest(self, shape: Shape) -> int | None:
        """The least width of a layer of a block that is adapted, as far as such are known."""
        adapted = self._adapted(list(shape.linear))
        return min((min(sizes) for name, sizes in shape.linear.items() if name in adapted), default=None)

    def _of_layer(self, outputs: int, inputs: int) -> int:
        return self.r * (outputs + inputs)

    def _adapted(self, linear: Sequence[str]) -> set[str]:
        """The names that linear layers have in their block, as far as they are told from `targets`."""
        if self.targets == "all-linear":
            return set(linear)
        named = ATTENTION if self.targets == "attention" else self.targets
        return {name.removeprefix("self_attn.").removeprefix("mlp.") for name in named}

    def base_bytes(self, shape: Shape, each: int) -> int:
        """All of the base in the stage's precision."""
        return each * shape.parameters


class RsloraAdapterConfig(LoraAdapterConfig):
    """Rank-stabilised LoRA (Kalajdzievski 2023, arXiv:2312.03732, section 3): scaled by alpha / sqrt(r).

    So that a high rank learns no slower than a low one. The default alpha gives the scale of `lora` at the default r.
    """

    alpha: Annotated[float, Field(gt=0, description="the update is scaled by alpha / sqrt(r)")] = 8.0


class DoraAdapterConfig(LoraAdapterConfig):
    """DoRA (Liu et al. 2024, arXiv:2402.09353, section 4): LoRA of the direction, and a magnitude for each output."""

    @model_validator(mode="after")
    def _no_stacks(self) -> DoraAdapterConfig:
        if self.target_parameters:
            raise ValueError("target_parameters: dora has no magnitudes for stacked weights; use lora or rslora")
        return self

    def _of_layer(self, outputs: int, inputs: int) -> int:
        return super()._of_layer(outputs, inputs) + outputs


class PissaAdapterConfig(LoraAdapterConfig):
    """PiSSA (Meng et al. 2024, arXiv:2404.02948, section 3): A and B begin at the r largest singular directions of W.

    The frozen part is what they leave of W. What is saved is LoRA of rank 2r on the original base: what was learned
    minus what it began with.
    """

    alpha: Annotated[float, Field(gt=0, description="the update is scaled by alpha / r; the paper's is r")] = 16.0
    iterations: Annotated[
        int, Field(ge=0, description="of the randomised decomposition; 0 decomposes exactly, in minutes for large ones")
    ] = 16

    @model_validator(mode="after")
    def _no_stacks(self) -> PissaAdapterConfig:
        if self.target_parameters:
            raise ValueError("target_parameters: pissa does not decompose stacked weights; use lora or rslora")
        return self


class PeftAdapterConfig(TargetsConfig):
    """Any other method of PEFT, such as `LOHA`, `IA3` or `VERA`, by its own keys.

    `keys` are those of PEFT's config class, and checked against it when the stage starts. Methods that put tokens
    before a text are refused: rows hold several texts.
    """

    method: Annotated[str, Field(description="PEFT's name of it, its `peft_type`")]
    keys: Annotated[
        dict[str, Any], Field(description="of the method's config, but `target_modules`, which is `targets`")
    ] = {}


class QloraAdapterConfig(LoraAdapterConfig):
    """QLoRA (Dettmers et al. 2023, arXiv:2305.14314, section 3): the frozen base in NF4, through bitsandbytes."""

    method: Annotated[Literal["lora", "rslora", "dora"], Field(description="what trains on it")] = "lora"

    double_quantisation: Annotated[bool, Field(description="of the blocks' scales too")] = True
    compute: Annotated[
        Literal["bfloat16", "float32"], Field(description="dtype of the products with dequantised weights")
    ] = "bfloat16"
    storage: Annotated[
        Literal["uint8", "bfloat16"], Field(description="dtype that packed bits are kept as; bfloat16 can be sharded")
    ] = "bfloat16"

    def _of_layer(self, outputs: int, inputs: int) -> int:
        return super()._of_layer(outputs, inputs) + (outputs if self.method == "dora" else 0)

    def base_bytes(self, shape: Shape, each: int) -> int:
        """Half a byte a weight, and for each block of 64 a scale: fp32, or 8 bits and a 256th of an fp32 one."""
        linear = shape.layers * sum(outputs * inputs for outputs, inputs in shape.linear.values())
        scales = linear // 64 + 4 * (linear // 64 // 256) if self.double_quantisation else 4 * (linear // 64)
        return linear // 2 + scales + each * (shape.parameters - linear)
