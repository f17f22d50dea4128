"""Settings of the architectures, by the keys of their `config.json`, and their size without torch.

Sizes are given one by one, or follow from one number: `depth: 12` (a width of 64 a layer) or `size: 125M` (about so
many parameters with the vocabulary at hand); `plan` prints what follows.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import AliasChoices, ConfigDict, Field, ValidationError, model_validator

from recipe_plugins.training.estimate import Shape, shape_of_config
from recipe_runner import Config, Count, RecipeError

Positive = Annotated[int, Field(ge=1)]

WIDTH = 64
"""Widths are multiples of it, and `depth` takes one a layer; it is also a head's size, twice that from 2,048 on."""

SLIMMEST, WIDEST = 32, 128
"""Width a layer that `size` may choose; the loss hardly depends on it in between (Kaplan et al. 2020, arXiv:2001.08361,
figure 5)."""

DEEPEST = 128
"""Layers that `size` may choose."""


def _both_words(schema: dict[str, Any]) -> None:
    """Let editors know `parameters` too."""
    schema["properties"]["parameters"] = schema["properties"]["size"]


class Decoder(Config):
    """What all have in common, and how sizes that are left out follow from `depth` or `size`."""

    model_config = ConfigDict(json_schema_extra=_both_words)

    model_type: ClassVar[str]
    sizes: ClassVar[tuple[str, ...]] = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")

    depth: Annotated[int, Field(ge=1, description="layers; the other sizes follow: a width of 64 a layer")] | None = (
        None
    )
    size: Annotated[
        Annotated[Count, Field(ge=1)] | None,
        Field(
            description="parameters, about; the sizes follow; `parameters` is another word for it",
            validation_alias=AliasChoices("size", "parameters"),
        ),
    ] = None
    hidden_size: Positive | None = None
    num_hidden_layers: Positive | None = None
    num_attention_heads: Positive | None = None
    max_position_embeddings: Positive = 2048
    tie_word_embeddings: bool = True
    initializer_range: Annotated[float, Field(gt=0, description="standard deviation of initial matrices")] = 0.02

    @model_validator(mode="before")
    @classmethod
    def _one_word(cls, data: Any) -> Any:
        """Of `size` and `parameters` the one that the last layer wrote; both in one layer are an error."""
        words = [key for key in data if key in ("size", "parameters")] if isinstance(data, Mapping) else []
        if len(words) < 2:
            return data
        files = {getattr(word, "folder", "") for word in words}
        if len(files) == 1:
            what = "size and parameters are words for the same"
            raise RecipeError(what, next="write one of them", field=words[1:])
        return {key: value for key, value in data.items() if key != words[0]}

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        """All sizes are there, or one number that they follow from, which they do not contradict."""
        missing = [name for name in self.sizes if getattr(self, name) is None]
        dials = [name for name in ("depth", "size") if getattr(self, name) is not None]
        if missing and not dials:
            raise ValueError(
                f"{missing[0]} is missing: give {' and '.join(missing)}, or what they follow from: "
                "`depth: 12` or `size: 125M`"
            )
        decided = [name for name in ("hidden_size", "num_hidden_layers") if name not in missing]
        if len(dials) == 2 or (dials and decided):
            raise ValueError(f"{' and '.join([*dials, *decided])} decide the same; give one, and null for the other")
        if not dials:
            self._fits()
        return self

    def _fits(self) -> None:
        """Raise `ValueError` where the sizes, all given, do not go together."""

    def following(self, hidden: int) -> dict[str, int]:
        """The sizes that follow from the width: those in `sizes` that come after width and layers."""
        return {"num_attention_heads": hidden // (2 * WIDTH if hidden >= 2048 and hidden % (2 * WIDTH) == 0 else WIDTH)}

    def sized(self, vocab_size: int) -> Self:
        """Itself, with every size. Raises `RecipeError` where no shape is near `size`, or one given does not fit."""
        if self.depth is not None:
            return self._shaped(self.depth, WIDTH * self.depth)
        if self.size is None:
            return self
        size = float(self.size)
        possible = [hidden for hidden in range(WIDTH, WIDEST * DEEPEST + 1, WIDTH) if self._possible(hidden)]
        depths = range(1, DEEPEST + 1)
        found = [(layers, hidden) for layers in depths for hidden in self._around(layers, possible, vocab_size)]

        def unlike(candidate: tuple[int, int]) -> tuple[int, float]:
            layers, hidden = candidate
            off = abs(math.log(self._count(layers, hidden, vocab_size) / size))
            return round(off / 0.02), abs(math.log(hidden / layers / WIDTH))

        best = min(found, key=unlike, default=None)
        got = self._count(*best, vocab_size) if best else 0
        if best is None or not 0.75 < got / size < 1.25:
            raise RecipeError(
                f"no shape has about {size:,.0f} parameters with a vocabulary of {vocab_size:,}; the nearest {got:,}",
                next="choose another size or vocab_size, or give hidden_size, num_hidden_layers and the others",
            )
        return self._shaped(*best)

    def _possible(self, hidden: int) -> bool:
        """Whether the sizes given go with such a width."""
        try:
            self._shaped(1, hidden)
        except RecipeError:
            return False
        return True

    def _around(self, layers: int, possible: list[int], vocab_size: int) -> list[int]:
        """The two widths around the asked size at so many layers."""
        assert self.size is not None
        widths = [hidden for hidden in possible if SLIMMEST * layers <= hidden <= WIDEST * layers]
        place = bisect(widths, self.size, key=lambda hidden: self._count(layers, hidden, vocab_size))
        return widths[max(0, place - 1) : place + 1]

    def _count(self, layers: int, hidden: int, vocab_size: int) -> int:
        return self._shaped(layers, hidden).parameters(vocab_size) or 0

    def _shaped(self, layers: int, hidden: int) -> Self:
        """Itself at this depth and width, the other sizes as given or as they follow."""
        given = {name: value for name, value in self.model_dump().items() if value is not None}
        first = {"depth": None, "size": None, "hidden_size": hidden, "num_hidden_layers": layers}
        try:
            return type(self).model_validate({**self.following(hidden), **given, **first})
        except ValidationError as error:
            why = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise RecipeError(
                f"{layers} layers of width {hidden} follow here, which do not fit: {why}",
                next="leave the other sizes out, or give all of them and neither depth nor size",
            ) from error

    def parameters(self, vocab_size: int) -> int | None:
        """Exactly as many as the model has, tied ones once; `None` where that takes building it."""
        raise NotImplementedError

    def derived(self, vocab_size: int) -> str:
        """The sizes that followed from `depth` or `size`, as people read them; nothing where all were given."""
        if self.depth is None and self.size is None:
            return ""
        own = self.sized(vocab_size)
        names = dict.fromkeys([*self.sizes, *self.following(WIDTH)])
        return ", ".join(f"{name} {getattr(own, name):,}" for name in names)


class Rotary(Decoder):
    """Decoders with rotary positions, RMSNorm, SwiGLU and grouped queries."""

    num_key_value_heads: Annotated[int, Field(ge=1, description="as many as heads, unless given")] | None = None
    rope_theta: Annotated[float, Field(gt=0)] = 10000.0
    rms_norm_eps: Annotated[float, Field(gt=0)] = 1e-5

    def _fits(self) -> None:
        heads, groups = self.num_attention_heads or 1, self.key_value_heads
        if heads % groups:
            raise ValueError(f"num_attention_heads {heads} must be a multiple of num_key_value_heads {groups}")

    @property
    def key_value_heads(self) -> int:
        """Heads of keys and values."""
        return self.num_key_value_heads or self.num_attention_heads or 1

    def keys(self, vocab_size: int) -> dict[str, Any]:
        """What stands in `config.json`."""
        sized = self.sized(vocab_size)
        return {
            **sized.model_dump(exclude={"depth", "size", "rope_theta"}),
            "model_type": self.model_type,
            "vocab_size": vocab_size,
            "num_key_value_heads": sized.key_value_heads,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
        }

    def shape(self, vocab_size: int) -> Shape:
        """Its sizes, for estimates."""
        return shape_of_config(self.keys(vocab_size))

    def parameters(self, vocab_size: int) -> int:
        """Exactly as many as the model has, tied ones once."""
        return self.shape(vocab_size).parameters


class Dense(Rotary):
    """Those whose layers have one SwiGLU each."""

    intermediate_size: Annotated[int, Field(ge=1, description="of the SwiGLU layer")] | None = None

    def following(self, hidden: int) -> dict[str, int]:
        """SwiGLU's width is 8/3 of the width, up to a multiple of 64 (Shazeer 2020, arXiv:2002.05202, section 2)."""
        return {**super().following(hidden), "intermediate_size": math.ceil(8 * hidden / 3 / WIDTH) * WIDTH}


class LlamaConfig(Dense):
    """The llama family (Touvron et al. 2023, arXiv:2302.13971, section 2.2; grouped queries: arXiv:2305.13245)."""

    model_type: ClassVar[str] = "llama"

    def _fits(self) -> None:
        super()._fits()
        hidden, heads = self.hidden_size or 0, self.num_attention_heads or 1
        if hidden % (2 * heads):
            raise ValueError(f"hidden_size {hidden} must be num_attention_heads {heads} times an even number")


class Qwen3Config(Dense):
    """Qwen3 without experts (Yang et al. 2025, arXiv:2505.09388, section 2): llama with normed queries and keys."""

    model_type: ClassVar[str] = "qwen3"

    head_dim: Annotated[int, Field(ge=2, multiple_of=2, description="of queries, keys and values")]
    rope_theta: Annotated[float, Field(gt=0)] = 1000000.0
    rms_norm_eps: Annotated[float, Field(gt=0)] = 1e-6

    def following(self, hidden: int) -> dict[str, int]:
        """Heads of the given size."""
        return {**super().following(hidden), "num_attention_heads": max(1, hidden // self.head_dim)}


class Qwen3MoEConfig(Rotary):
    """Qwen3 with experts in every layer (Yang et al. 2025, arXiv:2505.09388, section 2).

    `router_aux_loss_coef` weighs the balancing loss, which `recipe_plugins.training.routing` adds; 0 leaves it out, but
    not what is told of the experts' use.
    """

    model_type: ClassVar[str] = "qwen3_moe"
    sizes: ClassVar[tuple[str, ...]] = ("hidden_size", "num_hidden_layers", "num_attention_heads")

    head_dim: Annotated[int, Field(ge=2, multiple_of=2, description="of queries, keys and values")]
    num_experts: Annotated[int, Field(ge=2, description="of a layer")]
    num_experts_per_tok: Annotated[int, Field(ge=1, description="that a token goes through")]
    moe_intermediate_size: Annotated[int, Field(ge=8, multiple_of=8, description="of an expert's SwiGLU layer")]
    norm_topk_prob: Annotated[bool, Field(description="the weights of a token's experts add up to 1")] = True
    router_aux_loss_coef: Annotated[float, Field(ge=0, description="weight of the balancing loss")] = 1e-3
    rope_theta: Annotated[float, Field(gt=0)] = 1000000.0
    rms_norm_eps: Annotated[float, Field(gt=0)] = 1e-6

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if (self.hidden_size or 0) % 8:  # rows of 16 bytes in bf16, which products grouped by expert ask for
            raise ValueError(f"hidden_size {self.hidden_size} must be a multiple of 8")
        if self.num_experts_per_tok > self.num_experts:
            raise ValueError(
                f"num_experts_per_tok {self.num_experts_per_tok} is more than the {self.num_experts} experts"
            )
        return self

    def following(self, hidden: int) -> dict[str, int]:
        """Heads of the given size."""
        return {"num_attention_heads": max(1, hidden // self.head_dim)}

    def keys(self, vocab_size: int) -> dict[str, Any]:
        """What stands in `config.json`; no layer is without experts."""
        dense = {"decoder_sparse_step": 1, "mlp_only_layers": [], "intermediate_size": self.moe_intermediate_size}
        return {**super().keys(vocab_size), **dense}


class GPT2Config(Decoder):
    """GPT-2 (Radford et al. 2019, the GPT-2 report, section 2.3): learned positions, LayerNorm and GELU; no dropout."""

    model_type: ClassVar[str] = "gpt2"
    sizes: ClassVar[tuple[str, ...]] = ("hidden_size", "num_hidden_layers", "num_attention_heads")

    intermediate_size: Annotated[int, Field(ge=1, description="four times the width, unless given")] | None = None
    max_position_embeddings: Positive = 1024
    layer_norm_epsilon: Annotated[float, Field(gt=0)] = 1e-5

    def _fits(self) -> None:
        hidden, heads = self.hidden_size or 0, self.num_attention_heads or 1
        if hidden % heads:
            raise ValueError(f"hidden_size {hidden} must be a multiple of num_attention_heads {heads}")

    def following(self, hidden: int) -> dict[str, int]:
        """The inner width is four times the width."""
        return {**super().following(hidden), "intermediate_size": 4 * hidden}

    def sized(self, vocab_size: int) -> Self:
        """See `Decoder`; the inner width may be left out beside the other sizes too."""
        own = super().sized(vocab_size)
        assert own.hidden_size is not None
        wide = own.intermediate_size or self.following(own.hidden_size)["intermediate_size"]
        return own.model_copy(update={"intermediate_size": wide})

    def shape(self, vocab_size: int) -> Shape:
        """Its sizes, for estimates."""
        own = self.sized(vocab_size)
        return shape_of_config(
            {
                "model_type": self.model_type,
                "vocab_size": vocab_size,
                "n_positions": own.max_position_embeddings,
                "n_embd": own.hidden_size,
                "n_layer": own.num_hidden_layers,
                "n_inner": own.intermediate_size,
                "tie_word_embeddings": own.tie_word_embeddings,
            }
        )

    def parameters(self, vocab_size: int) -> int:
        """Exactly as many as the model has, tied ones once."""
        return self.shape(vocab_size).parameters


RESERVED = frozenset({"vocab_size", "model_type", "dtype", "torch_dtype", "use_cache", "architectures"})
"""Keys of a `config.json` that others decide: the tokeniser, `model_type` itself, and the loop."""


class TransformersConfig(Config):
    """Any decoder of transformers, by the keys of its `config.json`; those left out have the library's defaults.

    Nothing comes from the hub. Keys that the type does not have are refused when the stage starts, and so is a type
    that does not keep packed documents apart. `plan` does not know its size.
    """

    model_type: Annotated[str, Field(min_length=1, description="as in `config.json`, such as olmo2 or granite")]
    keys: Annotated[dict[str, Any], Field(description="other keys of `config.json`")] = {}

    @model_validator(mode="after")
    def _free(self) -> Self:
        taken = sorted(RESERVED & set(self.keys) | {key for key in self.keys if key.endswith("_token_id")})
        if taken:
            raise ValueError(
                f"keys.{taken[0]} is decided elsewhere: by the tokeniser, `model_type` or the training loop"
            )
        return self

    def parameters(self, vocab_size: int) -> int | None:
        """Not known without the library, whose defaults decide."""
        return None
