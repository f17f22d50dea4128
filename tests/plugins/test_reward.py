"""The stage `reward`: a head that tells better answers from worse ones, and is the same wherever it is loaded."""

from __future__ import annotations

import pytest

from recipe_runner import Interrupted, RecipeError, RewardModel
from recipe_runner.identity import folder_files
from recipe_runner.testing import LocalContext, make, slot

from .conftest import TUNING, turn, write_conversations

pytestmark = pytest.mark.slow
LETTERS = "abcdefghijkl"
CONFIG = {
    **TUNING, "model": "chat", "corpus": "pairs", "sequence_length": 64, "batch_size": 8, "budget": {"steps": 30},
    "optimizer": {"use": "adamw", "lr": 3e-3, "weight_decay": 0.0},
}  # fmt: skip


def _pair(question: str, chosen: str, rejected: str) -> dict:
    return turn(question, chosen, preference={"prompt": 1, "rejected": turn("", rejected)["messages"][1:]})


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """The better answer says `Near`; 121 pairs to learn, 11 held out."""
    rows = [_pair(f"Where is {a}{b} kept?", f"Near {a}.", f"With {b}.") for a in LETTERS for b in LETTERS if a != b]
    split = {"train": [row for row in rows if row not in rows[5::12]], "heldout": rows[5::12]}
    return write_conversations(tmp_path_factory.mktemp("pairs"), {"places": split})


@pytest.fixture(scope="module")
def trained(chat, pairs, tmp_path_factory):
    return make("reward", CONFIG, tmp_path_factory.mktemp("trained"), inputs={"chat": chat, "pairs": pairs})


def test_held_out_pairs_are_told_apart(trained):
    assert isinstance(trained, RewardModel)
    found = trained.facts["reward"]["places"]
    assert found["pairs"] == 11
    assert found["accuracy"] > 0.9
    assert found["margin"] > 0.5
    assert trained.facts["preparation"]["rows"] == {"read": 121, "kept": 121, "truncated": 0}


def test_the_answers_that_are_scored_are_marked_and_none_is_said_to_be_learned(trained):
    shown = {table["title"]: table for table in trained.facts["tables"]}
    assert "ends of turn" not in shown
    rows = shown["rows as they are trained on"]
    assert rows["columns"][1] == "text, marked where it is scored"
    assert [name.rpartition(", ")[2] for name, _ in rows["rows"]] == ["chosen", "rejected"] * 2
    for _, row in rows["rows"]:
        assert [scored for _, scored in row["marked"]][:2] == [False, True]
        assert row["marked"][1][0].endswith("<|im_end|>")


def test_before_it_is_trained_the_loss_is_ln_2(chat, pairs, tmp_path):
    context = LocalContext(tmp_path, inputs={"chat": chat, "pairs": pairs})
    slot("stage", {"use": "reward", **CONFIG, "budget": {"steps": 2}}).build().run(context)
    assert context.rows[0]["loss"] == pytest.approx(0.693147, abs=1e-6)
    assert context.rows[0]["reward_accuracy"] == 0.5
    assert context.rows[1]["loss"] < 0.6931


def test_the_payload_gives_each_conversation_the_reward_at_its_end_whatever_is_beside_it(trained):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from recipe_plugins.reward.model import rewards_of, until_the_end
    from recipe_plugins.training.pairs import Documents

    model = AutoModelForSequenceClassification.from_pretrained(trained.payload, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(trained.payload)
    documents = [*Documents(trained.path / "work/examples")[:3], *Documents(trained.path / "work/examples")[40:43]]
    given = {"rows_at_once": 6, "device": torch.device("cpu"), "dtype": torch.float32}
    together = rewards_of(model, documents, **given)
    for document, reward in zip(documents, together, strict=True):
        ids = torch.tensor(until_the_end(document)[0]).long()[None]
        assert tokenizer.decode(ids[0, -1:]) == "<|im_end|>"
        with torch.no_grad():
            hidden = model.model(input_ids=ids).last_hidden_state[0, -1]
            assert float(reward) == pytest.approx(float(model.score(hidden)), abs=1e-5)
            assert float(reward) == pytest.approx(float(model(input_ids=ids).logits), abs=1e-5)


def test_its_head_is_a_head_to_the_optimizer(trained):
    from transformers import AutoModelForSequenceClassification

    from recipe_plugins.training.groups import param_groups

    model = AutoModelForSequenceClassification.from_pretrained(trained.payload)
    found = {group.role: group.params for group in param_groups(model)}
    assert [id(parameter) for parameter in found["head"]] == [id(model.score.weight)]


def test_micro_batches_do_not_change_the_step(chat, pairs, tmp_path):
    rows = []
    for size in (8, 3):
        context = LocalContext(tmp_path / str(size), inputs={"chat": chat, "pairs": pairs})
        execution = {**CONFIG["execution"], "micro_batch": size}
        changes = {"budget": {"steps": 3}, "heldout_pairs": 0, "execution": execution}
        slot("stage", {"use": "reward", **CONFIG, **changes}).build().run(context)
        rows.append([(row["loss"], row["grad_norm"], row["reward_margin"]) for row in context.rows])
    for one, other in zip(*rows, strict=True):
        assert one == pytest.approx(other, rel=2e-3, abs=1e-6)


class Stopped(LocalContext):
    def stopping(self) -> bool:
        return len(self.rows) >= 12


def test_an_interrupted_run_ends_with_the_same_bytes(trained, chat, pairs, tmp_path):
    stage, inputs = slot("stage", {"use": "reward", **CONFIG}), {"chat": chat, "pairs": pairs}
    with pytest.raises(Interrupted):
        stage.build().run(Stopped(tmp_path, inputs=inputs))
    context = LocalContext(tmp_path, inputs=inputs)
    stage.build().run(context)
    assert context.rows[0]["step"] == 14
    assert folder_files(context.payload) == folder_files(trained.payload)


def test_single_answers_are_refused(chat, tmp_path):
    rows = [turn("Where?", "Here.", preference={"prompt": 1, "desirable": True})]
    corpus = write_conversations(tmp_path / "corpus", {"places": {"train": rows}})
    with pytest.raises(RecipeError, match="takes pairs"):
        make("reward", CONFIG, tmp_path / "made", inputs={"chat": chat, "pairs": corpus})


def test_held_out_records_that_cannot_be_measured_are_counted(chat, pairs, tmp_path):
    good = [_pair(f"Where is {n}?", "Here.", "There.") for n in range(9)]
    single = turn("Where?", "Here.", preference={"prompt": 1, "desirable": True})
    long = _pair("Where is all?", "Here.", "There, and there, and further. " * 9)
    splits = {"mixed": {"train": good[2:], "heldout": [*good[:2], single, long]}, "single": {"heldout": [single]}}
    inputs = {"chat": chat, "pairs": write_conversations(tmp_path / "corpus", splits)}
    made = make("reward", {**CONFIG, "budget": {"steps": 1}}, tmp_path / "made", inputs=inputs)
    assert made.facts["heldout"] == {
        "mixed": {"read": 4, "kept": 2, "dropped": {"single-answer": 1, "too-long": 1}},
        "single": {"read": 1, "kept": 0, "dropped": {"single-answer": 1}},
    }
    assert {name: found["pairs"] for name, found in made.facts["reward"].items()} == {"mixed": 2}
    (warned,) = made.manifest["warnings"]
    assert "single: none of 1 is usable (1 single-answer)" in warned


# ── through an adapter ───────────────────────────────────────────────────────────────────────────────────────────

ADAPTED = {**CONFIG, "adapter": {"use": "lora", "r": 8, "alpha": 16}, "optimizer": {"use": "adamw", "lr": 1e-2}}


@pytest.mark.parametrize("method", ["lora", "pissa"])
def test_through_an_adapter_it_tells_pairs_apart_and_is_saved_whole(chat, pairs, tmp_path, monkeypatch, method):
    """The head moves at the first step, the adapter after it; the merged model gives the rewards of the trained one."""
    import torch
    from transformers import AutoModelForSequenceClassification

    from recipe_plugins.reward import stage
    from recipe_plugins.reward.model import rewards_of
    from recipe_plugins.training.pairs import Documents

    right, seen, given = stage.merged, {}, {"rows_at_once": 8, "device": torch.device("cpu"), "dtype": torch.float32}

    def looked_at(model):
        seen["documents"] = list(Documents(tmp_path / "work/examples")[:16])
        seen["moved"] = float(
            model.get_base_model().model.layers[0].mlp.up_proj.lora_B["default"].weight.detach().abs().max()
        )
        seen["before"] = rewards_of(model.eval(), seen["documents"], **given)
        return right(model)

    monkeypatch.setattr(stage, "merged", looked_at)
    config = {**ADAPTED, "adapter": {**ADAPTED["adapter"], "use": method}}
    made = make("reward", config, tmp_path, inputs={"chat": chat, "pairs": pairs})
    model = AutoModelForSequenceClassification.from_pretrained(made.payload, dtype=torch.float32).eval()
    assert isinstance(made, RewardModel)
    assert made.facts["reward"]["places"]["accuracy"] > 0.9
    assert made.facts["trainable"] < made.facts["parameters"] / 2
    assert seen["moved"] > 0
    assert (rewards_of(model, seen["documents"], **given) - seen["before"]).abs().max() < 1e-4
    assert seen["before"].abs().max() > 0.1
    base = dict(AutoModelForSequenceClassification.from_pretrained(chat.payload, num_labels=1).named_parameters())
    far = {name: float((p - base[name]).abs().max()) for name, p in model.named_parameters() if name in base}
    assert far["model.layers.0.mlp.up_proj.weight"] > 1e-4
    assert far["model.embed_tokens.weight"] == far["model.norm.weight"] == 0


def test_an_interrupted_adapter_ends_with_the_same_bytes(chat, pairs, tmp_path):
    config = {**ADAPTED, "budget": {"steps": 16}, "heldout_pairs": 0}
    stage, inputs = slot("stage", {"use": "reward", **config}), {"chat": chat, "pairs": pairs}
    whole, cut = LocalContext(tmp_path / "whole", inputs=inputs), LocalContext(tmp_path / "cut", inputs=inputs)
    stage.build().run(whole)
    with pytest.raises(Interrupted):
        stage.build().run(Stopped(tmp_path / "cut", inputs=inputs))
    stage.build().run(cut)
    assert cut.rows[0]["step"] == 14
    assert folder_files(cut.payload) == folder_files(whole.payload)


def test_adapters_that_a_reward_model_cannot_have_are_refused(chat, pairs, tmp_path):
    with pytest.raises(ValueError, match="one on 4 bits is not made for"):
        slot("stage", {"use": "reward", **CONFIG, "adapter": "qlora"})
    config = {**CONFIG, "adapter": {"use": "lora", "modules": ["lm_head"]}}
    with pytest.raises(RecipeError, match="modules: lm_head"):
        make("reward", config, tmp_path, inputs={"chat": chat, "pairs": pairs})
