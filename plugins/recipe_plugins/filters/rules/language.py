"""Documents by their language, as a model tells it: py3langid's, which it carries, or a fastText model by path.

Limits: both look at a text as a whole, so a page half in one language counts as the stronger half; short texts are
guesses. Each needs an optional package, and says which.
"""

from __future__ import annotations

from collections.abc import Callable

from recipe_plugins.filters.models import fasttext_model
from recipe_plugins.filters.rules.config import LanguageConfig
from recipe_plugins.filters.rules.rule import DIGITS
from recipe_plugins.filters.text import text_of
from recipe_runner import RecipeError, Record, Verdict, suggest

Tell = Callable[[str], tuple[str, float]]
"""From a text to its language and how probable that is, in [0, 1]."""


class Language:
    """Keeps what is in one of the languages, surely enough."""

    def __init__(self, config: LanguageConfig) -> None:
        self.config = config
        self._tell, known = _fasttext(config.model) if config.model else _langid()
        for name in config.languages:
            if name not in known:
                raise RecipeError(f"language: the model knows no {name!r}", next=suggest(name, known, noun="languages"))

    def judge_one(self, record: Record) -> Verdict:
        """The reason names the language; `language_score` is the probability of what the text was taken for."""
        text = text_of(record)
        if not text.strip():
            return Verdict(False, "no_text")
        language, score = self._tell(" ".join(text.split()))
        scores = {"language_score": round(score, DIGITS)}
        if language not in self.config.languages:
            return Verdict(False, f"language_{language}", scores=scores)
        keep = score >= self.config.min_score
        return Verdict(keep, "" if keep else "unsure", scores=scores)


def _langid() -> tuple[Tell, list[str]]:
    try:
        from py3langid import langid
    except ImportError:
        raise RecipeError(
            "language: py3langid is not installed", next="pip install 'recipe-runner[language]', or give a `model`"
        ) from None
    model = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)

    def tell(text: str) -> tuple[str, float]:
        language, score = model.classify(text)
        return str(language), float(score)

    return tell, [str(label) for label in model.labels]


def _fasttext(path: str) -> tuple[Tell, list[str]]:
    model, labels = fasttext_model(path)

    def tell(text: str) -> tuple[str, float]:
        found, scores = model.predict(text, k=1)
        return found[0].removeprefix("__label__"), min(float(scores[0]), 1.0)

    return tell, [label.removeprefix("__label__") for label in labels]
