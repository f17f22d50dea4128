"""The objectives: by hand from their papers' formulas, and beside TRL's own losses."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from recipe_runner.testing import slot

pytestmark = pytest.mark.slow

POLICY = {"chosen": [-3.0, -12.5, -0.9], "rejected": [-4.0, -2.0, -30.0]}
REFERENCE = {"chosen": [-3.5, -12.5, -1.0], "rejected": [-3.0, -2.5, -29.0]}
TOKENS = {"chosen": [2, 5, 1], "rejected": [4, 1, 10]}


def answers(side: str):
    import torch

    from recipe_plugins.objectives.config import Answers

    return Answers(torch.tensor(POLICY[side]), torch.tensor(REFERENCE[side]), torch.tensor(TOKENS[side]))


def pairs():
    from recipe_plugins.objectives.config import Pairs

    return Pairs(answers("chosen"), answers("rejected"))


def judged(mismatched: float):
    import torch

    from recipe_plugins.objectives.config import Judged

    return Judged(answers("chosen"), torch.tensor([True, False, True]), torch.tensor(mismatched))


def objective(use: str, **config):
    return slot("objective", {"use": use, **config}).build()


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def by_hand(formula) -> list[float]:
    """`formula(w, y, w_ref, y_ref, w_tokens, y_tokens)` of each pair, y the rejected."""
    columns = [table[side] for table in (POLICY, REFERENCE, TOKENS) for side in ("chosen", "rejected")]
    return [formula(*row) for row in zip(*columns, strict=True)]


def test_dpo_is_equation_7():
    expected = by_hand(lambda w, y, rw, rl, nw, nl: -log_sigmoid(0.3 * ((w - rw) - (y - rl))))
    assert objective("dpo", beta=0.3).losses(pairs()).tolist() == pytest.approx(expected, rel=1e-5)


def test_dpo_is_ln_2_where_the_policy_is_the_reference():
    from recipe_plugins.objectives.config import Answers, Pairs

    same = [Answers(side.reference, side.reference, side.tokens) for side in (answers("chosen"), answers("rejected"))]
    assert objective("dpo").losses(Pairs(*same)).tolist() == pytest.approx([math.log(2)] * 3)


def test_ipo_is_equation_17_by_token():
    expected = by_hand(lambda w, y, rw, rl, nw, nl: ((w - rw) / nw - (y - rl) / nl - 1 / 0.4) ** 2)
    assert objective("ipo", beta=0.2).losses(pairs()).tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("mismatched", [0.4, -0.4])
def test_kto_is_equation_8_with_a_distance_of_at_least_nothing(mismatched):
    z, ratios = max(0.0, mismatched), [p - r for p, r in zip(POLICY["chosen"], REFERENCE["chosen"], strict=True)]
    value = [0.2 * (ratios[0] - z), 0.2 * (z - ratios[1]), 0.2 * (ratios[2] - z)]
    weights = [1.5, 0.5, 1.5]
    expected = [w * (1 - 1 / (1 + math.exp(-v))) for w, v in zip(weights, value, strict=True)]
    made = objective("kto", beta=0.2, desirable_weight=1.5, undesirable_weight=0.5)
    assert made.losses(judged(mismatched)).tolist() == pytest.approx(expected, rel=1e-5)


def test_orpo_is_equations_6_and_7():
    def odds(log_prob: float) -> float:
        return math.exp(log_prob) / (1 - math.exp(log_prob))

    expected = by_hand(lambda w, y, rw, rl, nw, nl: -w / nw - 0.2 * log_sigmoid(math.log(odds(w / nw) / odds(y / nl))))
    assert objective("orpo", beta=0.2).losses(pairs()).tolist() == pytest.approx(expected, rel=1e-4)


def test_odds_of_what_is_certain_and_of_what_is_impossible_are_finite():
    import torch

    from recipe_plugins.objectives.losses import log_odds

    given = torch.tensor([0.0, -1e-9, -1e-4, -200.0], requires_grad=True)
    found = log_odds(given)
    found.sum().backward()
    assert torch.isfinite(found).all()
    assert torch.isfinite(given.grad).all()
    assert found[2].item() == pytest.approx(math.log(math.exp(-1e-4) / (1 - math.exp(-1e-4))), rel=1e-4)


def test_simpo_is_equation_6():
    expected = by_hand(lambda w, y, rw, rl, nw, nl: -log_sigmoid(2.5 * w / nw - 2.5 * y / nl - 0.7))
    assert objective("simpo", beta=2.5, gamma=0.7).losses(pairs()).tolist() == pytest.approx(expected, rel=1e-5)


def test_orpo_and_simpo_are_what_trl_computes():
    orpo = pytest.importorskip("trl.experimental.orpo").ORPOTrainer
    cpo = pytest.importorskip("trl.experimental.cpo").CPOTrainer
    chosen, rejected = answers("chosen").mean, answers("rejected").mean
    theirs = SimpleNamespace(beta=0.3, accelerator=SimpleNamespace(device="cpu"))
    ratio = orpo.odds_ratio_loss(theirs, chosen, rejected)[0]  # to be taken from the likelihood's loss
    assert objective("orpo", beta=0.3).losses(pairs()).tolist() == pytest.approx((-chosen - ratio).tolist(), rel=1e-4)
    settings = {"loss_type": "simpo", "simpo_gamma": 0.8, "label_smoothing": 0.0, "alpha": 0.0}
    theirs = SimpleNamespace(beta=2.2, accelerator=SimpleNamespace(device="cpu"), **settings)
    expected = cpo.cpo_loss(theirs, chosen, rejected)[0]
    assert objective("simpo", beta=2.2, gamma=0.8).losses(pairs()).tolist() == pytest.approx(
        expected.tolist(), rel=1e-5
    )


@pytest.mark.parametrize(("use", "theirs"), [("dpo", "sigmoid"), ("ipo", "ipo")])
def test_dpo_and_ipo_are_what_trl_computes_on_a_model(use, theirs, chat, tmp_path):
    """TRL's own loss, mask and shift on a batch of ours, with a reference of ours."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    from recipe_plugins.objectives.config import Answers, Pairs
    from recipe_plugins.training.log_probs import answer_log_probs, padded

    documents = [_document(n, size, start) for n, (size, start) in enumerate([(12, 5), (9, 4), (12, 7), (7, 4)])]
    batch = padded(documents)
    model = AutoModelForCausalLM.from_pretrained(chat.payload, dtype=torch.float32).eval()
    with torch.no_grad():
        log_probs, tokens = answer_log_probs(model, **batch)
    reference = log_probs + torch.tensor([0.3, -0.2, 0.1, 0.4])
    sides = [Answers(log_probs[s], reference[s], tokens[s]) for s in (slice(2), slice(2, None))]
    ours = objective(use, beta=0.3).losses(Pairs(*sides)).mean()
    rows = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}] * 2)
    settings = DPOConfig(
        output_dir=str(tmp_path), loss_type=theirs, beta=0.3, use_cpu=True, bf16=False, report_to="none",
        precompute_ref_log_probs=True,
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(chat.payload)
    trainer = DPOTrainer(model=model, args=settings, train_dataset=rows, processing_class=tokenizer)
    lengths = torch.tensor([len(ids) for ids, _ in documents])
    given = {
        "input_ids": batch["input_ids"],
        "attention_mask": (torch.arange(12)[None] < lengths[:, None]).long(),
        "completion_mask": (batch["labels"] != -100).long(),
        "ref_chosen_logps": reference[:2],
        "ref_rejected_logps": reference[2:],
    }
    with torch.no_grad():
        expected = trainer._compute_loss(trainer.model.eval(), given, return_outputs=False)
    assert ours.item() == pytest.approx(float(expected), rel=1e-4)


def _document(number: int, size: int, start: int):
    import numpy as np

    ids = np.random.default_rng(number).integers(5, 300, size).astype(np.int32)
    return ids, np.where(np.arange(size) >= start, ids, -100).astype(np.int32)
