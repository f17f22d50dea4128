"""The settings, torch-free: they are checked whenever a recipe is."""

from typing import Annotated

from pydantic import Field

from recipe_runner import Config

Fraction = Annotated[float, Field(ge=0, lt=1)]


class LionConfig(Config):
    """Lion (Chen et al. 2023, arXiv:2302.06675, algorithm 2). Its rate is a third to a tenth of AdamW's."""

    lr: Annotated[float, Field(gt=0, description="the peak; the schedule is a factor on it")] = 3e-4
    betas: tuple[Fraction, Fraction] = (0.9, 0.99)
    weight_decay: Annotated[float, Field(ge=0)] = 0.3

    def state_bytes(self, parameters: int) -> int:
        """One fp32 momentum a parameter; `recipe plan` asks."""
        return 4 * parameters


class MinWordsConfig(Config):
    """What `min-words` keeps."""

    words: Annotated[int, Field(ge=1, description="fewest words of a document that is kept")] = 20
