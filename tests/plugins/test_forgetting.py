"""What fine-tuning gave and took: the pair of answer loss and bits per byte, before and after."""

from __future__ import annotations

import pytest

from recipe_runner.testing import make

pytestmark = pytest.mark.slow


def test_gain_and_loss_stand_side_by_side(chat):
    pair = chat.facts["forgetting"]
    assert pair["answer_loss"]["change"] < -1
    assert pair["answer_loss"]["after"] == chat.facts["answers"]["places"]["own"]["content"]
    text = pair["python-reference"]
    assert text["change"] == pytest.approx(text["after"] - text["before"], abs=1e-6)
    assert text["change"] > 0, "nothing but questions was trained on, at a high rate"
    table = chat.facts["tables"][-1]
    assert table["title"] == "learned and forgotten"
    assert len(table["rows"]) == 2
    assert any(text.startswith("forgetting: python-reference") for text in chat.manifest["warnings"])


def test_before_is_the_model_that_training_starts_from(chat, adapter, tiny_base):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from recipe_plugins.training.bits import bits_per_byte
    from recipe_plugins.training.forgetting import TEXT, fixed_text

    for tuned, start in ((chat, tiny_base), (adapter, chat)):
        model = AutoModelForCausalLM.from_pretrained(start.payload)
        tokenizer = AutoTokenizer.from_pretrained(start.payload)
        bits = bits_per_byte(model, tokenizer, {TEXT: fixed_text()}, 128, "cpu")[TEXT]
        assert tuned.facts["forgetting"][TEXT]["before"] == pytest.approx(bits, abs=1e-5)
    assert adapter.facts["forgetting"][TEXT]["before"] == pytest.approx(
        chat.facts["forgetting"][TEXT]["after"], abs=1e-5
    )


def test_the_same_questions_are_answered_by_both(chat):
    samples = chat.facts["samples"]
    assert len(samples) == 2
    for sample in samples:
        assert sample["prompt"].startswith("Where is ")
        assert sample["answers"]["tuned"].startswith("With ")
        assert sample["answers"]["base"] != sample["answers"]["tuned"]


def test_nothing_learned_is_nothing_forgotten(tiny_base, tiny_corpus, questions, tuning, tmp_path):
    settings = {"forgetting": {"text": "none", "probe": "text", "samples": 0}, "optimizer": {"lr": 1e-9}}
    config = {**tuning, "model": "b", "corpus": "q", "budget": {"steps": 1}, **settings}
    found = make("sft", config, tmp_path, inputs={"b": tiny_base, "q": questions, "text": tiny_corpus})
    pair = found.facts["forgetting"]
    assert sorted(pair) == ["answer_loss", "probe code", "probe prose"]
    assert all(abs(entry["change"]) < 1e-4 for entry in pair.values())
    assert not found.manifest["warnings"]
    assert found.facts["samples"] == []


def test_an_attempt_that_goes_on_measures_the_start_once(tiny_base, questions, tuning, tmp_path, monkeypatch):
    from recipe_plugins.training import forgetting

    config = {**tuning, "model": "b", "corpus": "q", "budget": {"steps": 2}}
    first = make("sft", config, tmp_path, inputs={"b": tiny_base, "q": questions})
    looks = []
    look = forgetting.Change._look
    monkeypatch.setattr(forgetting.Change, "_look", lambda self, model: looks.append(1) or look(self, model))
    again = make("sft", config, tmp_path, inputs={"b": tiny_base, "q": questions})
    assert len(looks) == 1
    assert again.facts["forgetting"] == first.facts["forgetting"]


def test_the_fixed_text_is_fixed():
    from recipe_plugins.training.forgetting import BYTES, fixed_text

    records = fixed_text()
    assert BYTES <= sum(record.size for record in records) < BYTES + 8_000
    assert [record.id for record in records] == [record.id for record in fixed_text()]
