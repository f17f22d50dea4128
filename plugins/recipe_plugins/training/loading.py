"""Models and tokenizers in and out of artifacts, with no dtype, attention or shard size left to a default.

Guarantees: a model whose weights do not fit its config, or do not cover it, is an error rather than a warning with
random weights; what the libraries cannot load is an error that says why; equal weights are saved as equal bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import logging

from recipe_runner import Artifact, RecipeError, StageContext

SHARD = "5GB"
DTYPES = {
    "fp32": torch.float32, "bf16": torch.bfloat16, "bf16-master": torch.bfloat16, "fp16": torch.float16,
    "fp8": torch.bfloat16,
}  # fmt: skip
"""What a recipe calls a precision, and the dtype of its matrix products; of fp8, of those that stay wider."""

PLAIN = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
"""How text is encoded: nothing added, and a `<|endoftext|>` that stands in it is text like any other."""


def load_model(
    ctx: StageContext, artifact: Artifact, *, dtype: torch.dtype = torch.float32, **library: Any
) -> PreTrainedModel:
    """The model of an artifact, on the CPU, its parameters in `dtype` (weights that are to be trained: fp32).

    `library` are further arguments of `from_pretrained`: how weights are quantised, and where they are put then.
    Raises `RecipeError` where weights are missing, unknown or of another shape, and for a model that is no causal
    language model with attention by sdpa.
    """
    logging.disable_progress_bar()
    with _told("model", artifact.payload):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            artifact.payload,
            dtype=dtype,
            attn_implementation="sdpa",
            trust_remote_code=ctx.allow_remote_code,
            local_files_only=True,
            output_loading_info=True,
            **library,
        )
    model, report = loaded
    wrong = {kind: sorted(map(str, report[kind])) for kind in report if kind.endswith("_keys") and report[kind]}
    if wrong:
        shown = "; ".join(f"{kind.replace('_', ' ')}: {', '.join(names[:3])}" for kind, names in wrong.items())
        raise RecipeError(
            f"the weights in {artifact.payload} are not those of its config.json ({shown})",
            next="check that the folder is complete and that its config.json is the one it was saved with",
        )
    return model


def load_skeleton(ctx: StageContext, artifact: Artifact) -> PreTrainedModel:
    """The model of an artifact without weights (on torch's device `meta`): its modules, their names, what is tied."""
    keys = {"trust_remote_code": ctx.allow_remote_code}
    with _told("model", artifact.payload):
        config = AutoConfig.from_pretrained(artifact.payload, local_files_only=True, **keys)
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, **keys)
    return model


def load_tokenizer(ctx: StageContext, artifact: Artifact) -> PreTrainedTokenizerBase:
    """The tokenizer of a tokeniser, a model or an adapter.

    Raises `RecipeError` where there is none: of a folder without its files the library makes, for some types of model,
    one that has but special tokens, to which every text is empty.
    """
    with _told("tokenizer", artifact.payload):
        found: Any = AutoTokenizer.from_pretrained(
            artifact.payload, trust_remote_code=ctx.allow_remote_code, local_files_only=True
        )
        special = {*found.all_special_tokens, *map(str, found.added_tokens_decoder.values())}
        if special.issuperset(found.get_vocab()):
            raise OSError("the files of its vocabulary are not there")
    return found


@contextmanager
def _told(what: str, folder: Path) -> Iterator[None]:
    """Raise `RecipeError` where the libraries cannot load the `what` of `folder`."""
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        why, mend = _why(what, folder, str(error).strip())
        raise RecipeError(f"the {what} in {folder} cannot be loaded: {why}", next=mend) from error


def _why(what: str, folder: Path, said: str) -> tuple[str, str]:
    """Why the libraries, of which one has `said` something, cannot load it, and what to do."""
    if "trust_remote_code" in said:
        return "it brings code of its own", "read that code; `recipe run --trust-remote-code` lets it run"
    with suppress(OSError, ValueError, KeyError):
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
        if what == "model" and (found := _unfit(kind)):
            return found, "choose a causal language model with attention, such as one of type llama, qwen3 or olmo2"
    if what == "tokenizer" and not (folder / "tokenizer.json").is_file():
        return "it has no tokenizer.json, nor another vocabulary", "look whether the folder is whole, or name another"
    return said.split("\n")[0], f"look whether the folder is whole, or name another {what}"


def _unfit(kind: str) -> str:
    """Why no model of a type can be loaded to be trained; nothing where some can."""
    if kind not in CONFIG_MAPPING:
        return f"the version of transformers that is installed knows no model of type {kind!r}"
    if CONFIG_MAPPING[kind] not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return f"a model of type {kind!r} is no causal language model"
    made: Any = MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[kind]]
    return "" if made._supports_sdpa else f"a model of type {kind!r} has no attention that torch computes (sdpa)"


def positions(folder: Path) -> int:
    """Tokens that the model saved in `folder` was made for, which learned positions cannot exceed."""
    keys = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return int(keys.get("max_position_embeddings") or keys.get("n_positions") or 2**30)


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write weights (safetensors), config, generation config and tokenizer with its chat template to `folder`."""
    logging.disable_progress_bar()
    model.config.use_cache = True  # off while training, but nobody who loads it wants it off
    model.save_pretrained(folder, max_shard_size=SHARD)
    tokenizer.save_pretrained(folder)


def set_special_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let `model` stop at the tokenizer's end token, and know its other special tokens."""
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.config, name, getattr(tokenizer, name))
        setattr(model.generation_config, name, getattr(tokenizer, name))
