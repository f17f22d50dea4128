"""The stage `pretrain`: a model from scratch on packed text, and its branch point; or one that goes on."""

from __future__ import annotations

import torch

from recipe_plugins.pretrain.config import PretrainConfig
from recipe_plugins.pretrain.continued import continue_training
from recipe_plugins.training.loading import load_tokenizer, set_special_tokens
from recipe_plugins.training.text import train_on_text
from recipe_runner import StageContext


class PretrainStage:
    """See the module's text."""

    def __init__(self, config: PretrainConfig) -> None:
        self.config = config

    def run(self, ctx: StageContext) -> None:
        """Build or load, train, keep the branch point, save."""
        if self.config.architecture is None:
            continue_training(ctx, self.config)
            return
        assert self.config.tokeniser is not None
        tokeniser = ctx.open(self.config.tokeniser)
        tokenizer = load_tokenizer(ctx, tokeniser)
        architecture = self.config.architecture.build()
        architecture.register()
        torch.manual_seed(ctx.seed("weights"))
        model = architecture.build(len(tokenizer))
        set_special_tokens(model, tokenizer)
        train_on_text(
            ctx,
            self.config,
            model,
            tokenizer,
            purpose="pretrain",
            digest=tokeniser.digest,
            optimizer=self.config.optimizer,
            branch=ctx.folder / "branch",
        )
