"""A byte-level BPE tokeniser as GGUF's metadata: tokens by id, their types, merges, and the rule that splits text.

GGUF names the rule of the pre-tokeniser, and llama.cpp has code for each name. So a tokeniser whose rule has no name
there cannot be exported: its ids would be others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recipe_runner import RecipeError

_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_REGEXES = {_SPLIT % r"\p{N}": "qwen2", _SPLIT % r"\p{N}{1,3}": "llama-bpe"}
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""Types of tokens, as GGUF numbers them."""


def vocabulary(folder: Path, size: int) -> dict[str, Any]:
    """What follows `tokenizer.ggml.` for the tokeniser in `folder`, for `size` rows of the embedding.

    Rows without a token get one that is marked unused. Raises `RecipeError` for another sort of tokeniser.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise RecipeError(f"{folder} has no tokenizer.json", next="only byte-level BPE tokenisers can be exported")
    keys = json.loads(path.read_text(encoding="utf-8"))
    rule = _rule(keys)
    tokens = {number: (text, NORMAL) for text, number in keys["model"]["vocab"].items()}
    for added in keys["added_tokens"]:
        tokens[added["id"]] = (added["content"], CONTROL if added["special"] else USER_DEFINED)
    if max(tokens) >= size:
        raise RecipeError(f"the tokeniser has ids up to {max(tokens)}, the embedding only {size} rows")
    listed = [tokens.get(number, (f"[PAD{number}]", UNUSED)) for number in range(size)]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in keys["model"]["merges"]]
    return {
        "model": "gpt2",
        "pre": rule,
        "tokens": [text for text, _ in listed],
        "token_type": [kind for _, kind in listed],
        "merges": merges,
    }


def _rule(keys: Mapping[str, Any]) -> str:
    """GGUF's name of the rule by which text is split before merging."""
    normalizer = keys.get("normalizer") or {}
    if keys["model"]["type"] != "BPE" or normalizer.get("type", "NFC") != "NFC" or not keys["model"]["merges"]:
        raise RecipeError("the tokeniser is no byte-level BPE", next="only byte-level BPE tokenisers can be exported")
    steps = keys.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers", [steps])
    last = steps[-1]
    if last.get("type") == "ByteLevel" and not last.get("add_prefix_space"):
        before = [step.get("type") for step in steps[:-1]]
        if not before and last.get("use_regex", True):
            return "gpt-2"
        if before == ["Digits"] and steps[0].get("individual_digits") and last.get("use_regex", True):
            return "smollm"
        if before == ["Split"] and not last.get("use_regex", True):
            named = _REGEXES.get(steps[0].get("pattern", {}).get("Regex", ""))
            if named:
                return named
    raise RecipeError(
        "the tokeniser splits text by a rule that GGUF has no name for",
        next="rules that it has: GPT-2's (algorithm byte-bpe), SmolLM's, Qwen2's and Llama 3's",
    )
