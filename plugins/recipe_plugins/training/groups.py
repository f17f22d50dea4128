"""Which parameters an optimizer treats alike.

A parameter's role follows from the module that holds it, never from its name: what the model calls its input embedding
(with whatever an adapter put there), its output head, any other matrix, any vector. Tied weights are an embedding,
once. Weight decay is for matrices and the head; embeddings, norms and biases have none. Matrices that lie on their side
(GPT-2's `Conv1D`, the experts of some models) are a group of their own, for optimizers to which it matters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from recipe_runner import ParamGroup

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

ROLES = ("matrix", "embedding", "head", "vector")
DECAYED = frozenset({"matrix", "head"})


def param_groups(model: PreTrainedModel, embedding_lr: float = 1.0) -> list[ParamGroup]:
    """The trainable parameters of `model`, one group a role, in the order of `ROLES` and of the model; matrices that
    are stored (inputs, outputs) come after those that are not.

    `embedding_lr` is the share of the learning rate that the embedding and the head train at.
    """
    roles, lying = _roles(model), _input_first(model)
    found: dict[tuple[str, bool], list[nn.Parameter]] = {(role, side): [] for role in ROLES for side in (False, True)}
    for parameter in model.parameters():
        if parameter.requires_grad:
            role = roles.get(id(parameter), "matrix" if parameter.ndim >= 2 else "vector")
            found[role, role == "matrix" and id(parameter) in lying].append(parameter)
    scales = dict.fromkeys(("embedding", "head"), embedding_lr)
    return [
        ParamGroup(params, role, role in DECAYED, scales.get(role, 1.0), side)
        for (role, side), params in found.items()
        if params
    ]


def output_head(model: Any) -> nn.Module | None:
    """The head of a model of tokens, or of one that judges a text; `None` where it has neither."""
    head: nn.Module | None = model.get_output_embeddings() or getattr(model, "score", None)
    return head


def _roles(model: PreTrainedModel) -> dict[int, str]:
    """Roles by the identity of the parameter, for those that their module decides."""
    from torch import nn

    head, embedding = output_head(model), model.get_input_embeddings()
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    roles = {id(p): "head" for p in (head.parameters() if head is not None else ()) if p.ndim >= 2}
    return roles | {id(p): "embedding" for module in [embedding, *tables] for p in module.parameters()}


def _input_first(model: PreTrainedModel) -> frozenset[int]:
    """The parameters, by identity, of modules that multiply from the left: x W in place of x W^T."""
    from transformers.pytorch_utils import Conv1D

    lying = [m for m in model.modules() if isinstance(m, Conv1D) or getattr(m, "is_transposed", False)]
    return frozenset(id(p) for module in lying for p in module.parameters(recurse=False))
