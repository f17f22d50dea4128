"""What merging an adapter costs: memory that does not grow with the model, time next to that of a copy.

    python tests/benchmarks/merge.py [--size 14GB] [--beside 2GB] [--hidden 4096] [--folder DIR]

An adapter of r = 16 on all linear layers goes into a synthetic bf16 llama in shards of 5 GB. Goals: the peak of
anonymous memory above that of the imports is at most 1 GB, whatever the model's size; merging, syncing and hashing take
at most twice as long as copying, syncing and hashing the same files, with the page cache dropped before each. PEFT's
`merge_and_unload` runs beside it on a model that fits into memory. `check` reads each weight back and checks it, in the
same memory; it is what the stage does after merging. Each is measured in a process of its own; prints one
line a measurement and exits 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from memory import Peak, anonymous

RANK = 16
GOALS = {"memory above imports, GB": 1.0, "time, of a copy's": 2.0}
LINEAR = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
          "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")  # fmt: skip


# ── a checkpoint and an adapter ──────────────────────────────────────────────────────────────────────────────────


def make(folder: Path, size: int, hidden: int) -> None:
    """A llama of about `size` bytes in bf16 under `folder/base`, and an adapter for it under `folder/adapter`."""
    wide = hidden * 43 // 16
    layers = max(1, round((size / 2 - 2 * 32_000 * hidden) / (4 * hidden * hidden + 3 * wide * hidden)))
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden, "vocab_size": 32_000,
        "intermediate_size": wide, "num_hidden_layers": layers, "num_attention_heads": hidden // 128 or 1,
        "num_key_value_heads": hidden // 128 or 1, "tie_word_embeddings": False, "dtype": "bfloat16",
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "hidden_act": "silu",
    }  # fmt: skip
    (folder / "base").mkdir(parents=True)
    (folder / "base" / "config.json").write_text(json.dumps(config))
    _write_base(folder / "base", hidden, wide, layers)
    _write_adapter(folder / "adapter", hidden, wide, layers)


def _shape(name: str, hidden: int, wide: int) -> tuple[int, int]:
    if name.endswith("down_proj"):
        return hidden, wide
    return (wide if name.startswith("mlp") else hidden), hidden


def _write_base(folder: Path, hidden: int, wide: int, layers: int) -> None:
    import torch

    from recipe_plugins.merge.parts import Kind
    from recipe_plugins.merge.writing import write

    kinds = {name: Kind("BF16", (32_000, hidden)) for name in ("model.embed_tokens.weight", "lm_head.weight")}
    kinds["model.norm.weight"] = Kind("BF16", (hidden,))
    for layer in range(layers):
        for name in LINEAR:
            kinds[f"model.layers.{layer}.{name}.weight"] = Kind("BF16", _shape(name, hidden, wide))
        for name in ("input_layernorm", "post_attention_layernorm"):
            kinds[f"model.layers.{layer}.{name}.weight"] = Kind("BF16", (hidden,))
    noise = torch.randn(4096 * max(hidden, wide), generator=torch.Generator().manual_seed(0)).bfloat16() * 0.02

    def rows(name: str) -> Iterator[torch.Tensor]:
        kind = kinds[name]
        for start in range(0, kind.rows, 4096):
            yield noise[: min(4096, kind.rows - start) * kind.columns]

    write(folder, kinds, rows)


def _write_adapter(folder: Path, hidden: int, wide: int, layers: int) -> None:
    import torch
    from peft import LoraConfig
    from safetensors.torch import save_file

    folder.mkdir()
    targets = [name.rpartition(".")[2] for name in LINEAR]
    LoraConfig(r=RANK, lora_alpha=32, target_modules=targets, task_type="CAUSAL_LM").save_pretrained(str(folder))
    draw = torch.Generator().manual_seed(1)
    tensors = {}
    for layer in range(layers):
        for name in LINEAR:
            outputs, inputs = _shape(name, hidden, wide)
            prefix = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{prefix}.lora_A.weight"] = torch.randn(RANK, inputs, generator=draw) * 0.02
            tensors[f"{prefix}.lora_B.weight"] = torch.randn(outputs, RANK, generator=draw) * 0.02
    save_file(tensors, folder / "adapter_model.safetensors")


# ── what is measured ─────────────────────────────────────────────────────────────────────────────────────────────


def measured(action: Callable[[], None], files: Path) -> dict[str, float]:
    """Seconds of `action`, with what it wrote in `files` synced and hashed, and its peak of anonymous memory."""
    before = anonymous()
    with Peak() as peak:
        begun = time.perf_counter()
        action()
        for path in sorted(files.glob("*.safetensors")):
            with open(path, "rb") as file:
                os.fsync(file.fileno())
                hashlib.file_digest(file, "sha256")
        seconds = time.perf_counter() - begun
    return {"seconds": seconds, "gigabytes": (peak.bytes - before) / 1e9}


def drop(folder: Path) -> None:
    """Put the files of a folder out of the page cache."""
    for path in folder.rglob("*.safetensors"):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def copy(folder: Path) -> dict[str, float]:
    """The same files, copied through memory."""
    target = folder / "copied"
    target.mkdir()

    def action() -> None:
        for path in sorted((folder / "base").glob("*.safetensors")):
            with open(path, "rb") as source, open(target / path.name, "wb") as out:
                shutil.copyfileobj(source, out, 2**24)

    return measured(action, target)


def ours(folder: Path) -> dict[str, float]:
    """The streamed merge of the stage, without its comparison of whole models."""
    import torch

    from recipe_plugins.merge.changes import Changes
    from recipe_plugins.merge.config import MergeConfig
    from recipe_plugins.merge.streaming import merge

    torch.ones(64, 64) @ torch.ones(64, 64)  # what the first product loads is an import
    block = MergeConfig.model_fields["block"].default
    return measured(
        lambda: merge(folder / "base", folder / "ours", Changes(folder / "adapter"), restored=None, block=block),
        folder / "ours",
    )


def check(folder: Path) -> dict[str, float]:
    """Reading back what `ours` wrote, and checking each weight."""
    from recipe_plugins.merge.checking import check_weights
    from recipe_plugins.merge.several import Weighted
    from recipe_runner import Adapter

    (folder / "adapter" / "payload").symlink_to(".")
    adapters = {"adapter": Weighted(Adapter(folder / "adapter", "", {}))}
    return measured(
        lambda: print(check_weights(folder / "base", folder / "ours", adapters, restored=None, resized=None)),
        folder / "none",
    )


def peft(folder: Path) -> dict[str, float]:
    """PEFT's own way: everything in memory."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    def action() -> None:
        model: Any = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.bfloat16)
        merged = PeftModel.from_pretrained(model, str(folder / "adapter")).merge_and_unload()
        merged.save_pretrained(folder / "peft", max_shard_size="5GB")

    return measured(action, folder / "peft")


ROLES = {"copy": copy, "ours": ours, "check": check, "peft": peft}


def apart(role: str, folder: Path) -> dict[str, float]:
    """A role in a process of its own, with nothing of the model cached."""
    drop(folder)
    words = [sys.executable, __file__, "--role", role, "--folder", str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(f"{role:<8} {found['seconds']:8.2f} s   {found['gigabytes']:6.2f} GB above imports", flush=True)
    return found


def size_of(text: str) -> int:
    """`14GB` in bytes."""
    return int(float(text.removesuffix("GB")) * 1e9)


def main() -> int:
    """Print the measurements; 1 if a goal is missed."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--size", default="14GB")
    options.add_argument("--beside", default="2GB")
    options.add_argument("--hidden", type=int, default=4096)
    options.add_argument("--folder", type=Path)
    options.add_argument("--role", choices=sorted(ROLES))
    given = options.parse_args()
    if given.role:
        print(json.dumps(ROLES[given.role](given.folder)))
        return 0
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        return compare(Path(name), given.size, given.beside, given.hidden)


def compare(folder: Path, size: str, beside: str, hidden: int) -> int:
    """All roles on the large model and on the one beside it."""
    print(f"{size}, hidden {hidden}")
    make(folder / "large", size_of(size), hidden)
    copied, merged, checked = (apart(role, folder / "large") for role in ("copy", "ours", "check"))
    shutil.rmtree(folder / "large")
    print(f"{beside}, hidden {hidden}")
    make(folder / "small", size_of(beside), hidden)
    small = apart("ours", folder / "small")
    apart("peft", folder / "small")
    found = {
        "memory above imports, GB": max(part["gigabytes"] for part in (merged, checked, small)),
        "time, of a copy's": merged["seconds"] / copied["seconds"],
    }
    for name, goal in GOALS.items():
        print(f"{name:<26} {found[name]:6.2f} (goal {goal})")
    return int(any(found[name] > goal for name, goal in GOALS.items()))


if __name__ == "__main__":
    sys.exit(main())
