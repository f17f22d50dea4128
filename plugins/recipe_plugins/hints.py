"""What is valid but out of the usual: hints that `recipe check` shows. Imports no torch.

The usual rates are those of published recipes: full tuning at 1e-5 to 1e-4, LoRA at 1e-4 to 1e-3, some ten times as
much (Hu et al. 2021, arXiv:2106.09685, appendix D; Biderman et al. 2024, arXiv:2405.09673, section 3). Small models
that a recipe makes itself take higher ones, so full tuning is only hinted at where the model comes from outside.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recipe_plugins.training.estimate import Shape, known_shape
from recipe_runner import Known, KnownInput, Problem, Ref, Use

LEAST_FOR_ADAPTERS, MOST_IN_FULL = 5e-5, 1e-4
"""Rates of AdamW."""

LEAST_FOR_TABLES, MOST_FOR_TABLES = 0.1, 0.5
"""Of the adapter's rate, in continued pretraining: 2 to 10 times lower, at higher rates the tables soon lose what they
knew (Unsloth 2024, "Continued LLM pretraining")."""

OBJECTIVES_ARE_LOWER = ("preference", "reward", "grpo")
"""Stages whose rates are far below those of fine-tuning whatever they train."""


def hints(recipe: Any) -> Iterator[Problem]:
    """Hints at adapters' scales and ranks, and learning rates, in a validated recipe."""
    for name, stage in recipe.stages.items():
        config: Any = stage.config
        adapter: Use[Any] | None = getattr(config, "adapter", None)
        if not isinstance(adapter, Use):
            adapter = None
        if adapter is not None:
            yield from _scale(recipe, name, adapter)
            yield from _rank(recipe, name, adapter, getattr(config, "model", None))
            yield from _tables(recipe, name, stage, adapter)
        if stage.component.name not in OBJECTIVES_ARE_LOWER:
            yield from _rate(recipe, name, config, adapter is not None)


def _scale(recipe: Any, stage: str, adapter: Use[Any]) -> Iterator[Problem]:
    config: Any = adapter.config
    plain = adapter.component.name == "lora" or getattr(config, "method", "") == "lora"
    if plain and not 1 <= config.alpha / config.r <= 2:
        yield recipe.problem(
            f"stages.{stage}.adapter",
            f"alpha / r is {config.alpha / config.r:g}; for plain LoRA it is 1 to 2 as a rule",
            f"set alpha to {config.r} or {2 * config.r}, or use rslora, whose scale is alpha / sqrt(r)",
            hint=True,
        )


def _tables(recipe: Any, stage: str, use: Any, adapter: Use[Any]) -> Iterator[Problem]:
    tables, share = getattr(adapter.config, "modules", []), getattr(use.config, "embedding_lr", 1.0)
    if use.component.name == "pretrain" and tables and not LEAST_FOR_TABLES <= share <= MOST_FOR_TABLES:
        yield recipe.problem(
            f"stages.{stage}.embedding_lr",
            f"{' and '.join(tables)} would train at {share:g} of the adapter's rate",
            "2 to 10 times lower is usual in continued pretraining: embedding_lr: 0.1 to 0.5",
            hint=True,
        )


def _rank(recipe: Any, stage: str, adapter: Use[Any], model: Ref | None) -> Iterator[Problem]:
    """Refused by the run too. A hint where the shape is one that is known without the model, or a size's."""
    config: Any = adapter.config
    if model is None or not hasattr(config, "narrowest"):
        return
    shape, sure = _shape(recipe, model)
    width = None if shape is None else config.narrowest(shape)
    if width is not None and config.r >= width:
        yield recipe.problem(
            f"stages.{stage}.adapter",
            f"r is {config.r}, and the narrowest layer is {width} wide: such an update is larger than the layer",
            f"set r below {width}, or train in full",
            hint=not sure,
        )


def _shape(recipe: Any, model: Ref) -> tuple[Shape | None, bool]:
    """The shape of a model, if it is known without it, and whether it will be that: the widths of one that the recipe
    makes are those of the architecture that it began with."""
    if model.where == "hub":
        return known_shape(Known({"model": KnownInput(hub=model.text)}), "model"), False
    if model.where == "path":
        return known_shape(Known({"model": KnownInput(payload=Path(model.text))}), "model"), True
    config: Any = recipe.stages[model.text].config
    architecture = getattr(config, "architecture", None)
    if architecture is None:
        start = getattr(config, "model", None)
        return (None, False) if start is None else _shape(recipe, start)
    if not hasattr(architecture.config, "shape"):
        return None, False
    made_by = recipe.stages.get(config.tokeniser.text)
    tokens = getattr(made_by.config, "vocab_size", None) if made_by else None
    if getattr(architecture.config, "size", None) is None:  # no width depends on how many tokens there are
        return architecture.config.shape(tokens or 1), True
    return architecture.config.shape(tokens) if tokens else None, False


def _rate(recipe: Any, stage: str, config: Any, adapts: bool) -> Iterator[Problem]:
    optimizer, model = getattr(config, "optimizer", None), getattr(config, "model", None)
    if optimizer is None or model is None or "adamw" not in optimizer.component.name:
        return
    rate, path = optimizer.config.lr, f"stages.{stage}.optimizer"
    if adapts and rate < LEAST_FOR_ADAPTERS:
        yield recipe.problem(
            path, f"lr {rate:g} is one of full tuning; adapters learn at some ten times as much", hint=True
        )
    elif not adapts and model.where != "stage" and rate > MOST_IN_FULL:
        yield recipe.problem(
            path, f"lr {rate:g} is one of adapters; full tuning takes a tenth of it as a rule", hint=True
        )
