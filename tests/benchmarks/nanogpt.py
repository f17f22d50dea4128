"""The baseline of `chars.py`: a character model in the shape of nanoGPT's small example, written for this repository.

Four layers of width 128, four heads, learned positions, LayerNorm, GELU, a tied head, no biases, no dropout; AdamW at
1e-3 with betas 0.9 and 0.99, decay 0.1 on matrices, gradients clipped to 1, 100 steps of warm-up and a cosine to a
tenth; batches of random windows. It is committed first and not tuned against.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

WIDTH, LAYERS, HEADS = 128, 4, 4
LR, LAST, WARMUP, BETAS, DECAY, CLIP = 1e-3, 1e-4, 100, (0.9, 0.99), 0.1, 1.0


class Block(nn.Module):
    """Attention and a GELU layer of four times the width, each behind a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH, bias=False), nn.LayerNorm(WIDTH, bias=False)
        self.attend, self.gather = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.widen, self.narrow = nn.Linear(WIDTH, 4 * WIDTH, bias=False), nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """`states` is (rows, tokens, width)."""
        rows, tokens, _ = states.shape
        parts = self.attend(self.first(states)).view(rows, tokens, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(*parts, is_causal=True)
        states = states + self.gather(mixed.transpose(1, 2).reshape(rows, tokens, WIDTH))
        return states + self.narrow(functional.gelu(self.widen(self.second(states))))


class Baseline(nn.Module):
    """Logits of the next character: (rows, tokens) to (rows, tokens, vocabulary)."""

    def __init__(self, vocabulary: int, length: int) -> None:
        super().__init__()
        self.characters, self.places = nn.Embedding(vocabulary, WIDTH), nn.Embedding(length, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH, bias=False)
        self.apply(_initial)
        for block in self.blocks:  # residual products are scaled by depth
            for product in (block.gather, block.narrow):
                nn.init.normal_(product.weight, std=0.02 / math.sqrt(2 * LAYERS))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        states = self.characters(ids) + self.places(torch.arange(ids.shape[1]))
        return functional.linear(self.norm(self.blocks(states)), self.characters.weight)


def _initial(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)


def rate(step: int, steps: int) -> float:
    """The learning rate of `step`."""
    warmup = min(WARMUP, max(1, steps // 10))
    if step < warmup:
        return LR * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return LAST + 0.5 * (LR - LAST) * (1 + math.cos(math.pi * done))


def train(ids: torch.Tensor, vocabulary: int, *, steps: int, rows: int, length: int, seed: int) -> Baseline:
    """The baseline after `steps` batches of `rows` windows of `length` characters of `ids`, 1-D."""
    torch.manual_seed(seed)
    model = Baseline(vocabulary, length)
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": DECAY},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS, fused=True)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps)
        starts = torch.randint(len(ids) - length, (rows, 1))
        windows = ids[starts + torch.arange(length + 1)]
        loss = functional.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return model.eval()
