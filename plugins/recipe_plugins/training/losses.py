"""The loss of the loop: cross-entropy summed over labels, shifted by one, in fp32, and PaLM's z-loss.

Two ways to the same numbers. `summed_loss` takes logits. `ChunkedHead` takes the place of the output product: it never
holds more than a chunk of the logits, none of places without a label, and makes their gradients in the forward pass, so
that nothing is computed twice (as Liger's fused linear cross-entropy does, Hsu et al. 2024, arXiv:2410.10989, section
3). Equal to 1e-6, tested.

Limit: only a head that is a plain matrix product can be taken apart; a model that scales or caps its logits after it is
noticed by comparing both on a few tokens, and keeps the plain way.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from recipe_plugins.training.conversations import IGNORED

CHUNK_LOGITS = 2**25
"""Logits that are held at once: 128 MiB in fp32."""

PROBE = 8
"""Tokens on which the two ways are compared."""


def shifted(labels: torch.Tensor) -> torch.Tensor:
    """Labels of shape (rows, tokens) as what each place predicts, of shape (rows * tokens,)."""
    return functional.pad(labels[:, 1:], (0, 1), value=IGNORED).flatten()


def summed_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy summed over the labels, shifted by one, in fp32 nats.

    `logits` is (rows, tokens, vocabulary); `labels` is (rows, tokens), -100 where nothing is predicted.
    """
    return functional.cross_entropy(
        logits.float().flatten(0, 1), shifted(labels), ignore_index=IGNORED, reduction="sum"
    )


def summed_z(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The squared log of the softmax's normaliser, summed over the labels (PaLM, arXiv:2204.02311, section 5)."""
    return logits.float().logsumexp(-1).flatten()[shifted(labels) != IGNORED].square().sum()


class ChunkedHead:
    """Takes the place of `head`, a bias-free `nn.Linear`, while `instead` lasts; `dtype` is that of its product."""

    def __init__(self, head: nn.Linear, dtype: torch.dtype) -> None:
        self.head, self.dtype = head, dtype
        self._on, self._hidden = False, torch.empty(0)
        head.register_forward_pre_hook(self._take)

    def _take(self, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        """Keep what the head is given, and give it nothing to multiply."""
        if not self._on:
            return None
        self._hidden = inputs[0]
        return (inputs[0][:, :0],)

    @contextmanager
    def instead(self) -> Iterator[None]:
        """Let the model end before its head: its logits have no token."""
        self._on = True
        try:
            yield
        finally:
            self._on = False

    def losses(
        self, labels: torch.Tensor, z_loss: float, scale: torch.Tensor | float = 1.0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the pass just made: nats + z_loss · z, to be differentiated, and nats.

        `scale` is what the former will be multiplied by where its gradients must be rounded so, as those of fp16 must.
        """
        hidden, self._hidden = self._hidden.flatten(0, 1), torch.empty(0)
        chunk = max(1, CHUNK_LOGITS // self.head.weight.shape[0])
        return _Chunked.apply(hidden, self.head.weight, shifted(labels), z_loss, chunk, self.dtype, scale)

    @torch.no_grad()
    def fits(self, model: Any) -> bool:
        """Whether `model`'s logits are this head's product and nothing more."""
        ids = torch.arange(PROBE, device=self.head.weight.device)[None] % self.head.weight.shape[0]
        training = model.training
        model.eval()
        try:
            seen: list[torch.Tensor] = []
            handle = self.head.register_forward_hook(lambda module, inputs, output: seen.append(output))
            logits = model(input_ids=ids, position_ids=ids.new_tensor([range(PROBE)]), use_cache=False).logits
            handle.remove()
        finally:
            model.train(training)
        return len(seen) == 1 and torch.equal(seen[0].float(), logits.float())


class FusedHead(ChunkedHead):
    """The same by Liger's fused linear cross-entropy, a Triton kernel."""

    def losses(
        self, labels: torch.Tensor, z_loss: float, scale: torch.Tensor | float = 1.0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `ChunkedHead`; `scale` must be 1."""
        from liger_kernel.ops import LigerFusedLinearCrossEntropyFunction as Fused

        assert scale == 1.0
        hidden, self._hidden = self._hidden.flatten(0, 1), torch.empty(0)
        settings = (None, None, IGNORED, z_loss, 0.0, "sum", None, True, torch.float32)  # the last: of summed gradients
        with torch.autocast(hidden.device.type, self.dtype, enabled=self.dtype != torch.float32):
            loss, z, *_ = Fused.apply(hidden, self.head.weight, shifted(labels), *settings)
        return loss, (loss - z).detach()


class _Chunked(torch.autograd.Function):
    """`hidden` is (n, width), `weight` (vocabulary, width), `labels` (n,)."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        labels: torch.Tensor,
        z_loss: float,
        chunk: int,
        dtype: torch.dtype,
        scale: torch.Tensor | float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        product = weight.to(dtype)
        by_hidden = torch.zeros_like(hidden)
        by_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        nats = torch.zeros((), device=hidden.device)
        z = torch.zeros((), device=hidden.device)
        for rows in (labels != IGNORED).nonzero()[:, 0].split(chunk):
            part, wanted = hidden[rows].to(dtype), labels[rows][:, None]
            logits = (part @ product.T).float()
            log_sum = logits.logsumexp(-1)
            nats += (log_sum - logits.gather(1, wanted)[:, 0]).sum()
            z += log_sum.square().sum()
            # d(nats + z_loss · log_sum²) / d logits = softmax · (1 + 2 · z_loss · log_sum) - one-hot
            slope = logits.sub_(log_sum[:, None]).exp_().mul_((1 + 2 * z_loss * log_sum)[:, None])
            slope.scatter_add_(1, wanted, torch.full_like(wanted, -1, dtype=slope.dtype))
            slope = (slope * scale).to(dtype)
            by_hidden[rows] = (slope @ product).to(hidden.dtype)
            if by_weight is not None:
                by_weight += slope.T @ part
        ctx.save_for_backward(by_hidden, by_weight)
        ctx.mark_non_differentiable(nats)
        ctx.scale = scale
        return nats + z_loss * z, nats

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        by_hidden, by_weight = ctx.saved_tensors
        scale = grads[0] / ctx.scale
        return by_hidden * scale, None if by_weight is None else by_weight * scale, *[None] * 5
