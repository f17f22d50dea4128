"""Which merged model is the better one, and whether it is good enough: by what measure, and by how much.

By logits, mostly: the largest difference to base and adapter, as a share of the largest that the adapter makes. Where
an adapter was trained on 4 bits and there are held-out answers, by their loss: of what the adapter gained on them, base
loss - adapter loss, the share that the merged model lost, (merged - adapter) / (base - adapter). Other weights give
other logits there and may answer as well or better; a lower loss than that of base and adapter loses nothing.

Guarantee: the measure that picks a model is the one that it is judged by. Limit: a loss can only tell whether the
adapter is there if the adapter lowers it; where it does not, as on a corpus of other things, logits judge, and it is
said so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from recipe_plugins.merge.checking import Checked
from recipe_plugins.merge.config import MergeConfig
from recipe_plugins.merge.gate import Probes, Seen
from recipe_runner import RecipeError

LOGITS, LOSS = "logits", "loss of held-out answers"

LEAST = 2e-2
"""Nats a token by which an adapter must lower the loss of held-out answers, so that the loss can judge: a tenth of it
is still more than rounding to 16 bits does to the mean of some thousand tokens."""


@dataclass(frozen=True, slots=True)
class Reference:
    """What the base computes for the probes, and what base and adapter do."""

    probes: Probes
    base: Seen
    seen: Seen

    @property
    def effect(self) -> float:
        """By how much the adapter moves logits."""
        return self.seen.difference(self.base)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A merged model in `folder`, added to the `base` weights of that name; None is what was not compared."""

    base: str
    folder: Path
    difference: float | None
    loss: float | None
    weights: Checked | None


class Judge:
    """`exact` is where nothing is rounded anywhere; `quantised` where the adapter was trained on 4 bits."""

    def __init__(self, config: MergeConfig, reference: Reference, *, exact: bool, quantised: bool) -> None:
        self.config, self.reference, self.exact = config, reference, exact
        self.because = _not_by_loss(reference) if quantised else ""
        self.measure = LOSS if quantised and not self.because else LOGITS

    def best(self, candidates: Sequence[Candidate]) -> Candidate:
        """The one of the lowest loss, or the closest logits."""

        def apart(candidate: Candidate) -> float:
            found = candidate.loss if self.measure == LOSS else candidate.difference
            assert found is not None
            return found

        return min(candidates, key=apart)

    def check(self, best: Candidate) -> dict[str, Any]:
        """What was measured and allowed. Raises `RecipeError` where more was lost than that."""
        return self._by_loss(best) if self.measure == LOSS else self._by_logits(best)

    def _by_loss(self, best: Candidate) -> dict[str, Any]:
        before, after, limit = self.reference.base.loss, self.reference.seen.loss, self.config.loss_tolerance
        assert before is not None
        assert after is not None
        assert best.loss is not None
        lost = (best.loss - after) / (before - after)
        if not lost <= limit:
            other = "`base: dequantised` is what it was trained on; " if best.base == "original" else ""
            raise RecipeError(
                f"the merged model's loss of held-out answers is {best.loss:.4f}, that of base and adapter {after:.4f}:"
                f" {lost:.1%} of what the adapter gained (from {before:.4f}) is lost, more than {limit:.1%} "
                "(loss_tolerance)",
                next=f"the adapter is kept; {other}raise loss_tolerance only if you know why they differ",
            )
        return {
            "judged_by": LOSS, **self._losses(best), "gain_lost": lost, "loss_tolerance": limit, "passed": True,
        }  # fmt: skip

    def _by_logits(self, best: Candidate) -> dict[str, Any]:
        effect, lost = self.reference.effect, self.config.relative_tolerance
        name, limit = ("tolerance", self.config.tolerance) if self.exact else ("relative_tolerance", lost * effect)
        assert best.difference is not None
        if not best.difference <= limit:
            raise RecipeError(
                f"the merged model's logits differ from those of base and adapter by {best.difference:.2g}, more than "
                f"{limit:.2g} ({name}); the adapter itself moves them by {effect:.2g}",
                next=f"the adapter is kept; raise {name} only if you know why they differ",
            )
        why = {"because": self.because} if self.because else {}
        measured = {**why, **self._losses(best), "limit": limit, name: getattr(self.config, name)}
        return {"judged_by": LOGITS, **measured, "passed": True}

    def _losses(self, best: Candidate) -> dict[str, float]:
        """Of held-out answers, in nats a token; none without any."""
        seen = {"base_loss": self.reference.base.loss, "adapter_loss": self.reference.seen.loss}
        return {name: loss for name, loss in {**seen, "merged_loss": best.loss}.items() if loss is not None}


def _not_by_loss(reference: Reference) -> str:
    """Why held-out answers cannot judge; empty where they can."""
    before, after = reference.base.loss, reference.seen.loss
    if before is None or after is None:
        return "there are no held-out answers (corpus)"
    if not before - after >= LEAST:
        return (
            f"the adapter takes the loss of the held-out answers from {before:.4f} to {after:.4f}, which is not "
            f"{LEAST:g} lower, and so does not tell whether it is there"
        )
    return ""


# ── for people ───────────────────────────────────────────────────────────────────────────────────────────────────


def facts_of(
    judge: Judge | None, candidates: list[Candidate], best: Candidate, gate: dict[str, Any], skipped: str
) -> dict[str, Any]:
    """What was measured, what was not and why, and what decided."""
    decided = "the only one" if judge is None or len(candidates) == 1 else judge.measure
    measured = [{k: v for k, v in asdict(candidate).items() if k != "folder"} for candidate in candidates]
    weights = asdict(best.weights) if best.weights else "not checked: merged by PEFT, which alone knows what they are"
    return {
        "base": best.base,
        "decided_by": decided,
        "logits": f"not compared: {skipped}" if skipped else "compared",
        "adapter_effect": judge.reference.effect if judge else None,
        "difference": best.difference,
        "gate": gate,
        "weights": weights,
        "candidates": measured,
    }


def table_of(reference: Reference | None, candidates: list[Candidate], best: Candidate) -> dict[str, Any]:
    """What each of the merged models is worth beside base and adapter, for people; the first one is kept."""
    rows = []
    if reference:
        rows = [
            ["base and adapter", "0", _shown(reference.seen.loss, ".4f"), ""],
            ["base alone", _shown(reference.effect, ".3g"), _shown(reference.base.loss, ".4f"), ""],
        ]
    for part in sorted(candidates, key=lambda candidate: candidate is not best):
        kept = _shown(part.weights.kept if part.weights else None, ".2%")
        rows.append([f"into the {part.base} weights", _shown(part.difference, ".3g"), _shown(part.loss, ".4f"), kept])
    moved = f"; the adapter moves logits by {reference.effect:.3g}" if reference else ""
    return {
        "title": f"merged{moved}",
        "columns": ["model", "logits apart", "held-out answers, nats a token", "change of weights kept"],
        "rows": rows,
    }


def _shown(value: float | None, how: str) -> str:
    return "not measured" if value is None else format(value, how)
