"""Classifiers that others trained, by path: fastText's `.bin`/`.ftz`, or a sequence classifier of transformers.

A model is a function from texts to scores, (texts,) float64: the probability of `label`, or the value itself of a
transformers model with one output, such as FineWeb-Edu's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recipe_runner import RecipeError

Scorer = Callable[[Sequence[str]], np.ndarray]
BATCH = 32
"""Texts that a transformers model is given at once."""


def loaded(path: str, label: str | None) -> Scorer:
    """The model of a file. Raises `RecipeError` where a library, the label or the file's kind is not known."""
    file = Path(path)
    if file.suffix in (".bin", ".ftz") and not (file.parent / "config.json").is_file():
        return _fasttext(file, label)
    if (file.parent / "config.json").is_file():
        return _transformers(file.parent, label)
    raise RecipeError(
        f"{path} is no classifier", next="give a fastText .bin or .ftz, or the weights in a folder with a config.json"
    )


def fasttext_model(path: str) -> tuple[Any, list[str]]:
    """fastText's model of a file and its labels; raises `RecipeError` without the library, or for another file."""
    try:
        import fasttext
    except ImportError:
        raise RecipeError(
            "fastText models need the extra `fasttext`", next="pip install 'recipe-runner[fasttext]'"
        ) from None
    try:
        model = fasttext.load_model(path)
    except ValueError as error:
        raise RecipeError(f"{path} is no fastText model: {error}", next="give a .bin or .ftz of fastText") from None
    return model, sorted(model.predict("label", k=-1, threshold=-1.0)[0])


def _fasttext(file: Path, label: str | None) -> Scorer:
    model, known = fasttext_model(str(file))
    wanted = label if label is None or label.startswith("__label__") else f"__label__{label}"
    if wanted not in known:
        raise RecipeError(f"{file.name} has no label {label!r}", next=f"set `label` to one of {', '.join(known)}")

    def score(texts: Sequence[str]) -> np.ndarray:
        found = (dict(zip(*model.predict(" ".join(text.split()), k=-1), strict=True)) for text in texts)
        return np.array([min(1.0, float(labels.get(wanted, 0.0))) for labels in found])  # it says 1.00001

    return score


def _transformers(folder: Path, label: str | None) -> Scorer:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False, dtype=torch.float32
    ).eval()
    names = model.config.label2id
    if model.config.num_labels > 1 and label not in names:
        raise RecipeError(f"{folder} has no label {label!r}", next=f"set `label` to one of {', '.join(names)}")
    longest = min(512, getattr(model.config, "max_position_embeddings", 512))

    def score(texts: Sequence[str]) -> np.ndarray:
        parts = [np.empty(0)]
        for start in range(0, len(texts), BATCH):
            batch = tokenizer(
                list(texts[start : start + BATCH]), truncation=True, max_length=longest, padding=True,
                return_tensors="pt",
            )  # fmt: skip
            with torch.inference_mode():
                logits = model(**batch).logits.double()
            parts.append((logits[:, 0] if logits.shape[1] == 1 else logits.softmax(-1)[:, names[label]]).numpy())
        return np.concatenate(parts)

    return score
