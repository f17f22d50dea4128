"""What fine-tuning stages are configured by: the training loop's settings, and how conversations become rows."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from recipe_plugins.training.config import Evaluation, TrainingConfig
from recipe_runner import Config, Corpus, Input, Model, Ref, Share


class Forgetting(Config):
    """What a model loses while it learns: bits per byte of text, before and after, and answers side by side."""

    text: Annotated[
        Literal["python-reference", "none"], Field(description="a fixed text; this one is in every CPython")
    ] = "python-reference"
    probe: Annotated[
        Ref | None, Input((Corpus,)), Field(description="a corpus whose held-out text is measured too")
    ] = None
    warn_above: Annotated[float, Field(gt=0, description="rise in bits per byte, as a share, that is warned of")] = 0.05
    samples: Annotated[int, Field(ge=0, description="held-out questions that both models answer")] = 2


class TuningConfig(TrainingConfig):
    """A model fine-tuned on conversations."""

    model: Annotated[Ref, Input((Model,))]
    corpus: Annotated[Ref, Input((Corpus,))]
    template: Annotated[
        Literal["model", "chatml"], Field(description="the chat template: the model's own, or ours in its place")
    ] = "model"
    train_on: Annotated[
        Literal["assistant", "last-turn", "all"], Field(description="what is learned: answers, the last one, all")
    ] = "assistant"
    packing: Annotated[bool, Field(description="several conversations a row, isolated from each other")] = True
    max_dropped: Annotated[
        Share, Field(description="share of conversations that may be dropped, or lose an answer for their length")
    ] = 0.01
    heldout_answers: Annotated[
        int, Field(ge=0, description="held-out conversations that answer losses are measured on")
    ] = 256
    evaluation: Evaluation = Field(default_factory=dict)  # type: ignore[assignment]
    forgetting: Forgetting = Field(default_factory=dict)  # type: ignore[assignment]
