"""What a training stage will cost, from shapes alone: parameters, FLOPs, bytes. Imports no torch.

Counts of parameters are exact for gpt2 and the llama family (llama, mistral, qwen2, qwen3 with and without experts)
and tested against built models. Memory is `footprint`'s; a model on the hub whose config is not here may be one of
`known_models`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from recipe_plugins.training.config import CHINCHILLA, LoopConfig, TrainingConfig
from recipe_plugins.training.footprint import ADAMW, alternatives, footprint, in_words
from recipe_plugins.training.known_models import known_keys
from recipe_runner import Estimate, Known, KnownInput, RecipeError

FAMILY = {
    "llama": {"qkv_bias": False, "qk_norm": False},
    "mistral": {"qkv_bias": False, "qk_norm": False},
    "qwen2": {"qkv_bias": True, "qk_norm": False},
    "qwen3": {"qkv_bias": False, "qk_norm": True},
    "qwen3_moe": {"qkv_bias": False, "qk_norm": True},
}
"""The model types of llama's family, and in what they differ."""

COUNTED = frozenset({*FAMILY, "gpt2"})
"""The model types whose parameters are counted."""

UNKNOWN = Estimate(
    notes=[
        "parameters, memory and FLOPs are unknown: the model's config is not on this machine, or of a type that is not "
        "counted; `hf download NAME config.json --revision COMMIT` brings one"
    ]
)
"""What is estimated of a stage whose model cannot be looked at, and is of no type whose parameters are counted."""


UNCOUNTED = Estimate(
    notes=["parameters, memory and FLOPs are unknown: how much this adapter trains does not follow from its settings"]
)
"""What is estimated of a stage whose adapter's size is known only when it is put on the model."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a model. `parameters` are all, tied ones once; `embedding` those of the input tables, of positions
    too; `head` those of the output product, tied or not; `width` is that of attention, heads × head size; `linear` has
    outputs and inputs of each linear layer of a block, by name (stacked experts are none, nor are gpt2's layers);
    `inactive` are the parameters of experts that a token does not go through; `vectors` those of norms and biases."""

    parameters: int
    embedding: int
    head: int
    tied: bool
    layers: int
    width: int
    linear: Mapping[str, Sequence[int]]
    inactive: int = 0
    vectors: int | None = None

    @property
    def matrices(self) -> int:
        """Parameters in the matrices of blocks, neither tables nor vectors; 0 where vectors were not counted."""
        tables = self.embedding + (0 if self.tied else self.head)
        return 0 if self.vectors is None else self.parameters - tables - self.vectors

    @property
    def active(self) -> int:
        """Parameters that a token meets."""
        return self.parameters - self.inactive

    @property
    def multiplied(self) -> int:
        """Parameters that a token is multiplied with: active ones but the input table, and the head even if tied."""
        return self.active - self.embedding + (self.head if self.tied else 0)

    def flops_per_token(self, sequence_length: int) -> float:
        """Of a forward and backward pass: 6 · (non-embedding + head) + 12 · L · d · T.

        After Kaplan et al. 2020 (arXiv:2001.08361, section 2.1) and the attention term of PaLM (arXiv:2204.02311,
        appendix B), which counts full attention.
        """
        return 6.0 * self.multiplied + 12.0 * self.layers * self.width * sequence_length

    def facts(self) -> dict[str, Any]:
        """As JSON, for a manifest or for the stages after this one."""
        return {**asdict(self), "linear": {name: list(sizes) for name, sizes in self.linear.items()}}


def shape_of_config(keys: Mapping[str, Any]) -> Shape:
    """The sizes of a model of gpt2's or llama's family from its `config.json`.

    Raises `RecipeError` for another model type.
    """
    kind = keys.get("model_type")
    if kind not in COUNTED:
        raise RecipeError(
            f"the size of a model of type {kind!r} is not known",
            next=f"types whose size is known: {', '.join(sorted(COUNTED))}",
        )
    if kind == "gpt2":
        return _gpt2(keys)
    family = FAMILY[kind]
    hidden, layers, heads = keys["hidden_size"], keys["num_hidden_layers"], keys["num_attention_heads"]
    head_size = keys.get("head_dim") or hidden // heads
    queries, pairs = heads * head_size, (keys.get("num_key_value_heads") or heads) * head_size
    attention = {
        "q_proj": (queries, hidden), "k_proj": (pairs, hidden), "v_proj": (pairs, hidden), "o_proj": (hidden, queries),
    }  # fmt: skip
    multiplied, vectors = sum(outputs * inputs for outputs, inputs in attention.values()), 2 * hidden
    if family["qkv_bias"] or keys.get("attention_bias"):
        vectors += queries + 2 * pairs
    if keys.get("attention_bias"):
        vectors += hidden
    if family["qk_norm"]:
        vectors += 2 * head_size
    feeding, inactive, dense, biases = _feed_forward(keys)
    table = keys["vocab_size"] * hidden
    tied = bool(keys.get("tie_word_embeddings", False))
    return Shape(
        parameters=layers * (multiplied + vectors) + feeding + hidden + table * (1 if tied else 2),
        embedding=table,
        head=table,
        tied=tied,
        layers=layers,
        width=queries,
        linear={**attention, **dense},
        inactive=inactive,
        vectors=layers * vectors + hidden + biases,
    )


def _gpt2(keys: Mapping[str, Any]) -> Shape:
    hidden, layers, tied = keys["n_embd"], keys["n_layer"], bool(keys.get("tie_word_embeddings", True))
    wide = keys.get("n_inner") or 4 * hidden
    matrices, vectors = 4 * hidden * hidden + 2 * hidden * wide, 9 * hidden + wide  # a bias each, and two LayerNorms
    table, positions = keys["vocab_size"] * hidden, keys["n_positions"] * hidden
    return Shape(
        parameters=layers * (matrices + vectors) + 2 * hidden + table * (1 if tied else 2) + positions,
        embedding=table + positions,
        head=table,
        tied=tied,
        layers=layers,
        width=hidden,
        linear={},
        vectors=layers * vectors + 2 * hidden,
    )


def _feed_forward(keys: Mapping[str, Any]) -> tuple[int, int, dict[str, tuple[int, int]], int]:
    """Of all layers: the parameters, those of experts that a token does not go through, a block's linear layers, and
    the biases among the parameters."""
    hidden, layers, wide = keys["hidden_size"], keys["num_hidden_layers"], keys["intermediate_size"]
    sparse = _layers_with_experts(keys)
    linear = {"gate_proj": (wide, hidden), "up_proj": (wide, hidden), "down_proj": (hidden, wide)}
    biases = 2 * wide + hidden if keys.get("mlp_bias") else 0
    dense = 3 * wide * hidden + biases
    if not sparse:
        return layers * dense, 0, linear, layers * biases
    experts = experts_of(keys)
    expert = 3 * keys["moe_intermediate_size"] * hidden
    inactive = sparse * (experts - keys["num_experts_per_tok"]) * expert
    router = experts * hidden
    plain = layers - sparse
    return sparse * (experts * expert + router) + plain * dense, inactive, {}, plain * biases


def _layers_with_experts(keys: Mapping[str, Any]) -> int:
    if keys["model_type"] != "qwen3_moe":
        return 0
    every, without = keys.get("decoder_sparse_step", 1), keys.get("mlp_only_layers") or ()
    return sum((layer + 1) % every == 0 and layer not in without for layer in range(keys["num_hidden_layers"]))


def experts_of(keys: Mapping[str, Any]) -> int:
    """Experts of a layer; newer versions of transformers write them down by another name. 0 without any."""
    return int(keys.get("num_experts") or keys.get("num_local_experts") or 0)


def known_shape(known: Known, name: str) -> Shape | None:
    """The sizes of the model that is input `name`: from its facts, or its config if that is here, or known without."""
    found = known.inputs.get(name, KnownInput())
    if found.facts.get("shape"):
        return Shape(**found.facts["shape"])
    if found.payload is not None:
        return shape_of_folder(found.payload)
    keys = known_keys(found.hub)
    return None if keys is None else shape_of_config(keys)


def shape_of_folder(folder: Path) -> Shape | None:
    """The sizes of a saved model; `None` where there is no config, or one whose size is not known."""
    path = folder / "config.json"
    if not path.is_file():
        return None
    keys = json.loads(path.read_text(encoding="utf-8"))
    return shape_of_config(keys) if keys.get("model_type") in COUNTED else None


def flops_per_token(keys: Mapping[str, Any], sequence_length: int) -> float | None:
    """Of a model with this `config.json`; `None` where its size is not known."""
    return shape_of_config(keys).flops_per_token(sequence_length) if keys.get("model_type") in COUNTED else None


def state_bytes_of(optimizer: Any, parameters: int, matrices: int) -> int:
    """What the optimizer of this config keeps for so many parameters, of which so many are in matrices."""
    of_matrices = getattr(optimizer, "matrix_state_bytes", None)  # which few have: most keep the same of all
    if of_matrices is None:
        return int(optimizer.state_bytes(parameters))
    return int(of_matrices(matrices) + optimizer.state_bytes(parameters - matrices))


def training_estimate(
    config: LoopConfig,
    *,
    parameters: int | None,
    shape: Shape | None,
    vocab_size: int | None,
    state_bytes: int | None,
    rows: int | None = None,
) -> Estimate:
    """The estimate of a stage that trains a whole model; what does not follow from the arguments is left unknown.

    `rows` is the length of an epoch, where it is known.
    """
    per_token = shape.flops_per_token(config.sequence_length) if shape else None
    steps = config.steps(rows=rows, parameters=parameters, flops_per_token=per_token)
    tokens = None if steps is None else steps * config.tokens_per_step
    memory: dict[str, int] = {}
    less: dict[str, int] = {}
    saved = None
    notes = []
    if parameters is not None and state_bytes is not None:
        memory = footprint(config, shape, trained=parameters, state_bytes=state_bytes)
        less = alternatives(config, shape, parameters, state_bytes, None)
        weights = 6 if config.precision == "bf16-master" else 4  # in 16 bits, with masters beside them
        saved = weights * parameters + state_bytes
        notes.append(in_words(memory, parameters, config))
    if shape is not None and shape.inactive:
        notes.append(f"{shape.active:,} parameters are active for a token")
    if parameters is not None and tokens is not None:
        notes.append(f"{tokens / parameters:.3g} tokens per parameter; Chinchilla's is {CHINCHILLA}")
    return Estimate(
        parameters=parameters,
        trainable=parameters,
        tokens=tokens,
        steps=steps,
        flops=per_token * tokens if per_token and tokens else None,
        memory=memory,
        alternatives=less,
        disk=None if saved is None else saved * _kept(config),
        facts={"shape": shape.facts() if shape else None, "vocab_size": vocab_size, "optimizer_bytes": state_bytes},
        notes=notes,
    )


def _kept(config: LoopConfig) -> int:
    """Checkpoints on the disk at most: one more while saving, the best, and the branch."""
    evaluation = getattr(config, "evaluation", None)
    best = evaluation is not None and evaluation.keep == "best"
    return config.execution.keep_checkpoints + 1 + best + config.keeps_branch


def tuning_estimate(config: TrainingConfig, known: Known) -> Estimate:
    """The estimate of a stage that trains every weight of its input `model`."""
    shape, optimizer = known_shape(known, "model"), config.optimizer.config
    parameters = shape.parameters if shape else known.fact("model", "parameters")
    found = training_estimate(
        config,
        parameters=parameters,
        shape=shape,
        vocab_size=known.fact("model", "vocab_size"),
        state_bytes=None
        if parameters is None
        else state_bytes_of(optimizer, parameters, shape.matrices if shape else 0),
    )
    return replace(found, notes=[*UNKNOWN.notes, *found.notes]) if parameters is None else found


def adapter_estimate(config: LoopConfig, shape: Shape, method: Any, optimizer: Any) -> Estimate:
    """The estimate of a stage that trains an adapter: frozen weights once, the rest for the adapter's parameters only.

    `method` and `optimizer` are configs. FLOPs leave out the gradients of frozen weights, a third of a full step's.
    """
    trainable = method.trainable(shape) if hasattr(method, "trainable") else None
    if trainable is None:
        return UNCOUNTED
    state_bytes = optimizer.state_bytes(trainable)
    frozen = method.base_bytes(shape, 4 if config.precision == "fp32" else 2)
    steps = config.steps(rows=None, parameters=shape.parameters + trainable)
    tokens = None if steps is None else steps * config.tokens_per_step
    memory = footprint(config, shape, trained=trainable, state_bytes=state_bytes, frozen_bytes=frozen)
    a_token = shape.flops_per_token(config.sequence_length) - 2 * shape.multiplied + 6 * trainable
    return Estimate(
        parameters=shape.parameters + trainable,
        trainable=trainable,
        tokens=tokens,
        steps=steps,
        flops=None if tokens is None else a_token * tokens,
        memory=memory,
        alternatives=alternatives(config, shape, trainable, state_bytes, frozen),
        disk=(4 * trainable + state_bytes) * _kept(config),
        notes=[_saved(shape, frozen, trainable, state_bytes)],
    )


def _saved(shape: Shape, frozen: int, trainable: int, state_bytes: int) -> str:
    """What an adapter takes, beside the 16 bytes a parameter of AdamW on every weight (see `training_memory`)."""
    full, adapter = (4 + 4 + ADAMW) * shape.parameters, 8 * trainable + state_bytes
    return (
        f"all weights trained would take {full / 1e9:,.3g} GB before activations, 16 bytes a parameter; "
        f"the frozen base takes {frozen / 1e9:,.3g} GB, {frozen / shape.parameters:.2g} bytes a parameter, "
        f"and the adapter {adapter / 1e9:,.3g} GB, {adapter / trainable:.3g}"
    )


def training_facts(
    *,
    tokens: int,
    parameters: int,
    trainable: int,
    shape: Shape | None,
    vocab_size: int,
    state_bytes: int,
    tokens_per_second: float | None,
) -> dict[str, Any]:
    """What a training stage notes: its size, and all that the estimates of later stages read.

    `chinchilla_minutes` is the time that 20 tokens per parameter would take at the measured rate.
    """
    full = CHINCHILLA * parameters / tokens_per_second / 60 if tokens_per_second else None
    return {
        "tables": [_table(tokens, parameters, trainable, tokens_per_second, full)],
        "tokens": tokens,
        "parameters": parameters,
        "trainable": trainable,
        "trainable_share": round(trainable / parameters, 8),
        "tokens_per_parameter": tokens / parameters,
        "chinchilla_tokens_per_parameter": CHINCHILLA,
        "chinchilla_minutes": full,
        "tokens_per_second": tokens_per_second,
        "shape": shape.facts() if shape else None,
        "vocab_size": vocab_size,
        "optimizer_bytes": state_bytes,
    }


def _table(
    tokens: int, parameters: int, trainable: int, tokens_per_second: float | None, full: float | None
) -> dict[str, Any]:
    """The same, as people read it at the end of a run."""
    ratio = f"{tokens / parameters:.2f}; Chinchilla's {CHINCHILLA}"
    return {
        "title": "trained",
        "columns": ["what", "measured"],
        "rows": [
            ["parameters", f"{parameters:,}"],
            ["trainable", f"{trainable:,} ({trainable / parameters:.2%})"],
            ["tokens", f"{tokens:,}"],
            ["tokens per parameter", ratio if full is None else f"{ratio} would take {full:,.1f} min here"],
            ["tokens per second", "unknown" if tokens_per_second is None else f"{tokens_per_second:,.0f}"],
        ],
    }
