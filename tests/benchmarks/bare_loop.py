"""A bare PyTorch training loop: what `pretrain.py` measures the trainer against. It imports nothing of ours.

    python bare_loop.py SPEC    SPEC is JSON: config, tokens, batch, length, steps, precision, compile, threads, device

The model is transformers' Llama with sdpa, the rows stretches of a memory map, the optimizer fused AdamW whose decay
skips vectors and embeddings, gradients are clipped to 1. Nothing is read back from the device within a step. Prints
JSON: the time at the end of each step (monotonic seconds), and bytes of memory after the imports and at the peak.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM


def resident() -> int:
    """Bytes of memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def main(spec: dict) -> dict:
    """Train, and return what is printed."""
    torch.set_num_threads(spec["threads"])
    imported, device = resident(), torch.device(spec["device"])
    batch, length = spec["batch"], spec["length"]
    torch.manual_seed(0)
    config = LlamaConfig(**spec["config"], attention_bias=False, mlp_bias=False, attention_dropout=0.0)
    model = LlamaForCausalLM._from_config(config, attn_implementation="sdpa", dtype=torch.float32).to(device).train()
    table = model.get_input_embeddings().weight
    decayed = [p for p in model.parameters() if p.ndim >= 2 and p is not table]
    others = [p for p in model.parameters() if p.ndim < 2 or p is table]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 10))
    run = torch.compile(model) if spec["compile"] else model
    stream = np.memmap(spec["tokens"], dtype=np.uint16, mode="r")
    draw = np.random.default_rng(0)
    ends = []
    for _ in range(spec["steps"]):
        starts = draw.integers(0, len(stream) - length, batch)
        ids = torch.from_numpy(np.stack([stream[start : start + length].astype(np.int64) for start in starts]))
        ids = ids.to(device, non_blocking=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=spec["precision"] == "bf16"):
            logits = run(input_ids=ids, use_cache=False).logits
        loss = functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        ends.append(time.monotonic())
    if device.type == "cuda":
        torch.cuda.synchronize()
        ends[-1] = time.monotonic()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"ends": ends, "imported": imported, "peak": peak}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
