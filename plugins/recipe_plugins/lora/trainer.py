"""The loop for adapters on conversations: TRL's, with a look at the first step."""

from __future__ import annotations

from recipe_plugins.adapters.attaching import MovesAdapter
from recipe_plugins.training.supervised import SupervisedTrainer


class AdapterTrainer(MovesAdapter, SupervisedTrainer):
    """Trains a `PeftModel`; see `MovesAdapter`."""
