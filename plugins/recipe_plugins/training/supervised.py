"""The loop over TRL's `SFTTrainer`, for rows whose labels were made when they were prepared.

TRL gets no say in the data: truncation, packing, padding and dataset preparation are all off, and it is shown a data
set of one row only because it asks for one; the rows themselves come through the mixin's loader.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datasets import Dataset
from trl import SFTConfig, SFTTrainer  # type: ignore[attr-defined]

from recipe_plugins.training.job import Job
from recipe_plugins.training.trainer import RecipeTrainerMixin


class SupervisedTrainer(RecipeTrainerMixin, SFTTrainer):
    """Fine-tuning in full or through an adapter (`model` may be a `PeftModel`)."""

    arguments_class = SFTConfig
    library_arguments: Mapping[str, Any] = {
        "max_length": None,
        "packing": False,
        "padding_free": False,
        "shuffle_dataset": False,
        "completion_only_loss": False,
        "assistant_only_loss": False,
        "loss_type": "nll",
        "activation_offloading": False,
        "dataset_kwargs": {"skip_prepare_dataset": True},
    }

    def __init__(self, *, job: Job, **library: Any) -> None:
        shown = Dataset.from_list([{key: list(map(int, values)) for key, values in job.rows[0].items()}])
        super().__init__(job=job, train_dataset=shown, **library)
