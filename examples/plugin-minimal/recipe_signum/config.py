"""The settings, torch-free: they are checked whenever a recipe is."""

from typing import Annotated

from pydantic import Field

from recipe_runner import Config


class SignumConfig(Config):
    """Signum (Bernstein et al. 2018, arXiv:1802.04434, algorithm 2). Its rate is a third to a tenth of AdamW's."""

    lr: Annotated[float, Field(gt=0, description="the peak; the schedule is a factor on it")] = 3e-4
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 0.3

    def state_bytes(self, parameters: int) -> int:
        """One fp32 momentum a parameter; `recipe plan` asks."""
        return 4 * parameters


class MinWordsConfig(Config):
    """What `min-words` keeps."""

    words: Annotated[int, Field(ge=1, description="fewest words of a document that is kept")] = 20
