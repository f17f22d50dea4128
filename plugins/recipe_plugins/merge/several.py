"""Several adapters of one base, each by its weight: what they do to tensors, and the base with all of them on it.

One adapter makes a tensor W into Wᵢ (which for LoRA is W + α/r · B A). Several, of weights wᵢ, make W + Σ wᵢ (Wᵢ - W)
of it: changes add up, whatever made them. That is so for DoRA's rows, which are brought to another length, and for
tables that were trained whole or in part, too; adding DoRA's magnitudes themselves would mean nothing. PiSSA is saved
as LoRA.

Guarantee: what is compared with the result, `load_several`, is computed another way, by PEFT's layers one adapter at a
time. Limit: methods that PEFT alone can merge are taken one at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from recipe_plugins.adapters.saving import check_base, load_adapted, quantisation_of
from recipe_plugins.merge.changes import PREFIX, Change, Changes, LowRank, other_settings
from recipe_plugins.merge.parts import check_patterns, chosen
from recipe_plugins.training.loading import load_tokenizer
from recipe_runner import Adapter, Artifact, RecipeError, StageContext


@dataclass(frozen=True, slots=True)
class Weighted:
    """An adapter, and how much it counts: everywhere, or by tensor."""

    adapter: Adapter
    weight: float | Mapping[str, float] = 1.0

    @property
    def whole(self) -> bool:
        """Whether it counts as it is."""
        return self.weight == 1.0


Adapters = Mapping[str, Weighted]
"""What is merged, by name, in the recipe's order."""


def check_adapters(ctx: StageContext, base: Artifact, adapters: Adapters) -> None:
    """Raise `RecipeError` unless all were trained on `base`, stored in one way, and know the same tokens."""
    names = list(adapters)
    for part in adapters.values():
        check_base(part.adapter, base)
    first = adapters[names[0]].adapter
    vocabulary = load_tokenizer(ctx, first).get_vocab()
    for name in names[1:]:
        other = adapters[name].adapter
        if _stored(other) != _stored(first):
            raise RecipeError(
                f"{name} and {names[0]} were trained on their base stored in different ways: {_stored(other)} and "
                f"{_stored(first)}",
                next="merge each by itself, then the results with `task-arithmetic`",
            )
        if load_tokenizer(ctx, other).get_vocab() != vocabulary:
            raise RecipeError(
                f"the tokenisers of {name} and {names[0]} differ, so rows of their tables stand for different tokens",
                next="train them with one tokeniser",
            )
    if len(adapters) > 1 or not all(part.whole for part in adapters.values()):
        for name, part in adapters.items():
            _only_changes(name, part.adapter)


def _stored(adapter: Adapter) -> str:
    """How the base was stored while the adapter trained, for people; 16 and 32 bits are one, as both are exact."""
    found = quantisation_of(adapter)
    return f"{found} of {adapter.facts.get('base_dtype')}" if found else "unquantised"


def _only_changes(name: str, adapter: Adapter) -> None:
    other = other_settings(adapter.payload)
    if other:
        shown = ", ".join(f"{key}: {value}" for key, value in other.items())
        raise RecipeError(
            f"{name} cannot be weighted: what these settings do to a weight only PEFT knows: {shown}",
            next="merge it by itself with `adapter`, then the results with `task-arithmetic`",
        )


# ── tensors ──────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Sum:
    """W + Σ w (change(W) - W); low-rank updates, which do not depend on W, are added as they are."""

    parts: tuple[tuple[float, Change], ...]

    def apply(self, block: torch.Tensor, start: int) -> None:
        """See `Change`."""
        low = [LowRank(c.a, c.b, weight * c.scale) for weight, c in self.parts if isinstance(c, LowRank)]
        others = [(weight, change) for weight, change in self.parts if not isinstance(change, LowRank)]
        before = block.clone() if others else block
        for weight, change in others:
            changed = before.clone()
            change.apply(changed, start)
            block.add_(changed.sub_(before), alpha=weight)
        for update in low:
            update.apply(block, start)


class Summed(Mapping[str, Change]):
    """What all of them do, by the name of the tensor of the base; one adapter that counts whole, as it stands.

    Raises `RecipeError` where a tensor was trained whole by one and in part by another, which no model can compare.
    """

    def __init__(self, adapters: Adapters) -> None:
        self._parts = [(part.weight, Changes(part.adapter.payload)) for part in adapters.values()]
        self._kinds: dict[str, str] = {}
        for name, (weight, changes) in zip(adapters, self._parts, strict=True):
            if isinstance(weight, Mapping):
                check_patterns({f"adapters.{name}.weight": weight}, list(changes))
            for tensor in changes:
                if self._kinds.setdefault(tensor, changes.kind(tensor)) != changes.kind(tensor):
                    raise RecipeError(
                        f"{tensor} is changed by {name} in another way than by the adapters before it",
                        next="merge each by itself with `adapter`, then the results with `task-arithmetic`",
                    )

    def __iter__(self) -> Iterator[str]:
        return iter(self._kinds)

    def __len__(self) -> int:
        return len(self._kinds)

    def __getitem__(self, tensor: str) -> Change:
        parts = [(chosen(weight, tensor), changes[tensor]) for weight, changes in self._parts if tensor in changes]
        if not parts:
            raise KeyError(tensor)
        return parts[0][1] if len(parts) == 1 and parts[0][0] == 1 else Sum(tuple(parts))


# ── the model that the result is compared with ───────────────────────────────────────────────────────────────────


class WeightedLayer(nn.Module):
    """A layer that PEFT has put several adapters on: the plain one, and by weight what each adapter adds to it."""

    def __init__(self, layer: Any, weights: Mapping[str, float]) -> None:
        super().__init__()
        self.layer, self.weights = layer, weights

    def forward(self, *given: Any, **named: Any) -> torch.Tensor:
        """The layer's output; without adapters while they are disabled."""
        plain = self._base()(*given, **named)
        if self.layer.disable_adapters:
            return plain
        total = plain
        for name, weight in self.weights.items():
            self.layer.set_adapter([name])
            total = total + weight * (self.layer(*given, **named) - plain)
        return total

    def _base(self) -> Any:
        layer = self.layer
        return layer.base_layer if hasattr(layer, "base_layer") else layer.original_module


def load_several(
    ctx: StageContext, adapters: Adapters, base: Artifact, *, device: torch.device, dtype: torch.dtype
) -> PeftModel:
    """`base` with all adapters on it by their weights, in eval mode, to look at; see `load_adapted`."""
    first, *others = adapters.values()
    model = load_adapted(ctx, first.adapter, base, device=device, dtype=dtype)
    if not others and first.whole:
        return model
    labels = {"default": first, **{f"other{number}": part for number, part in enumerate(others)}}
    for label, part in labels.items():
        if part is not first:
            model.load_adapter(str(part.adapter.payload), adapter_name=label, is_trainable=False)
    for name, layer in _adapted_layers(model):
        there = {key for place in layer.adapter_layer_names for key in attrgetter(place)(layer)}
        tensor = f"{name.removeprefix(PREFIX)}.weight"
        weights = {label: chosen(part.weight, tensor) for label, part in labels.items() if label in there}
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, WeightedLayer(layer, weights))
    return model.eval()


def _adapted_layers(model: PeftModel) -> list[tuple[str, Any]]:
    """The outermost of the layers that PEFT has put adapters on."""
    found: list[tuple[str, Any]] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{other}.") for other, _ in found)
        if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)) and not inside:
            found.append((name, module))
    return found
