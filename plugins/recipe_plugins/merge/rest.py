"""What a merged model has beside its weights: generation config, tokenizer, and a card that says what it came from."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from recipe_runner import Artifact

CARD = "README.md"
TOLD = ("tokens", "supervised_tokens", "steps", "loss", "trainable", "parameters")
"""The facts of a stage that a card shows."""


def write_rest(model: Path, payload: Path, tokenizer: PreTrainedTokenizerBase, ends: Collection[int]) -> None:
    """The generation config of `model`, with `ends` among the tokens that end an answer; tokenizer and template."""
    path = model / "generation_config.json"
    keys = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    given = keys.get("eos_token_id")
    known = set(given if isinstance(given, list) else [] if given is None else [given]) | set(ends)
    if known:
        keys["eos_token_id"] = sorted(known)
    (payload / "generation_config.json").write_text(json.dumps(keys, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    tokenizer.save_pretrained(payload)


def write_card(folder: Path, title: str, inputs: Mapping[str, Artifact], facts: Mapping[str, Any]) -> None:
    """`README.md` in `folder`: what was merged how, and the stages that each input came from, as manifests say.

    `facts` are shown as they are. What lies in no store of ours is named by its digest alone.
    """
    lines = ["---", "library_name: transformers", "tags: [merge]", "---", "", f"# {title}", ""]
    lines += [f"- {key.replace('_', ' ')}: {_shown(value)}" for key, value in facts.items()]
    lines += ["", "## What it was made of", ""]
    for label, artifact in inputs.items():
        known = _neighbours(artifact)
        lines += _lineage(f"{label}: ", artifact.digest, {artifact.digest: artifact.manifest, **known}, 0, set())
    (folder / CARD).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _neighbours(artifact: Artifact) -> dict[str, Mapping[str, Any]]:
    """The manifests of the store that an artifact lies in, by digest."""
    if not artifact.manifest.get("key"):
        return {}
    paths = artifact.path.parent.parent.glob("*/*/manifest.json")
    manifests = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(paths) if "." not in path.parent.name]
    return {str(manifest["digest"]): manifest for manifest in manifests}


def _lineage(label: str, digest: str, known: Mapping[str, Mapping[str, Any]], depth: int, seen: set[str]) -> list[str]:
    """A line for an artifact, and indented those of its inputs; a second time, only the first line."""
    manifest = known.get(digest, {})
    facts = manifest.get("facts", {})
    told = [f"{key.replace('_', ' ')} {_shown(facts[key])}" for key in TOLD if facts.get(key) is not None]
    made = [str(manifest.get("use", "from outside")), f"sha256 {digest[:12]}", *told]
    lines = [f"{'  ' * depth}- {label}{', '.join(made)}"]
    if digest in seen:
        return lines
    seen.add(digest)
    identity = manifest.get("identity", {})
    for name, revision in identity.get("sources", {}).items():
        lines.append(f"{'  ' * (depth + 1)}- {name}: {revision}")
    for name, other in identity.get("inputs", {}).items():
        lines += _lineage(f"{name}: ", str(other), known, depth + 1, seen)
    return lines
