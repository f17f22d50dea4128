"""What a model thinks of held-out answers, before and after: rewards, margins, how often the better is ahead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from recipe_plugins.objectives.config import Answers, Objective
from recipe_plugins.training.conversations import IGNORED
from recipe_plugins.training.log_probs import ahead
from recipe_plugins.training.pairs import Heldout


def told(objective: Objective, domain: Heldout, log_probs: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Means to 6 places. `reward_*` are by the objective; `likelier` is how often the chosen answer has the higher
    probability, whatever the reference says."""
    documents = domain.documents
    tokens = [int((labels[1:] != IGNORED).sum()) for _, labels in documents]
    answers = Answers(torch.from_numpy(log_probs), torch.from_numpy(reference), torch.tensor(tokens))
    rewards = objective.rewards(answers)
    if domain.paired:
        chosen, rejected = rewards.chunk(2)
        likelier = torch.from_numpy(log_probs).chunk(2)
        found = {
            "reward_chosen": chosen.mean(),
            "reward_rejected": rejected.mean(),
            "reward_margin": (chosen - rejected).mean(),
            "reward_accuracy": ahead(chosen - rejected).mean(),
            "likelier": ahead(likelier[0] - likelier[1]).mean(),
        }
    else:
        wanted = torch.tensor([answers[0].desirable for answers in domain.answers])
        sides = {"reward_desirable": rewards[wanted], "reward_undesirable": rewards[~wanted]}
        found = {name: side.mean() for name, side in sides.items() if len(side)}
        if len(found) == 2:
            found["reward_margin"] = found["reward_desirable"] - found["reward_undesirable"]
    return {name: round(float(value), 6) for name, value in found.items()}


def table(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The same, as people read it."""
    rows = [
        [f"{domain} {name}", value, found["after"][name]]
        for domain, found in facts.items()
        for name, value in found["before"].items()
    ]
    return {"title": "what held-out answers are worth", "columns": ["", "before", "after"], "rows": rows}
