"""The stage `merge`: adapters into the weights of their base, or several models into one.

What is written is read back and checked, weight by weight; where a model fits into memory, what it computes is compared
too. `into_base` and `models` say how.
"""

from __future__ import annotations

from recipe_plugins.merge.config import MergeConfig
from recipe_plugins.merge.into_base import AdapterMerge
from recipe_plugins.merge.models import merge_models
from recipe_plugins.training.machine import set_threads
from recipe_runner import StageContext


class MergeStage:
    """See the module's text."""

    def __init__(self, config: MergeConfig) -> None:
        self.config = config

    def run(self, ctx: StageContext) -> None:
        """Merge models by a method, or adapters into their base."""
        if ctx.rank:
            return
        set_threads(self.config.execution)
        if self.config.method is not None:
            merge_models(ctx, self.config, self.config.method)
        else:
            AdapterMerge(ctx, self.config).run()
