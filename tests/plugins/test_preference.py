"""The stage `preference`: rows, masks and reference; what is learned; exact resume; what is counted or refused."""

from __future__ import annotations

import json
import math
import os
from types import SimpleNamespace

import pytest

from recipe_runner import Interrupted, Known, KnownInput, RecipeError, Record
from recipe_runner.identity import folder_files
from recipe_runner.testing import LocalContext, make, slot

from .conftest import turn, write_conversations

pytestmark = pytest.mark.slow
LETTERS = "abcdefghijkl"


def pair(question: str, chosen: str, rejected: str, **meta) -> dict:
    other = [{"role": "assistant", "content": rejected}]
    return turn(question, chosen, **meta, preference={"prompt": 1, "rejected": other})


@pytest.fixture(scope="session")
def judged(tmp_path_factory):
    """`chat` answers `With a.`; here `Near a.` is the better answer. 121 pairs to learn, 11 held out."""
    rows = [pair(f"Where is {a}{b} kept?", f"Near {a}.", f"With {a}.") for a in LETTERS for b in LETTERS if a != b]
    folder = tmp_path_factory.mktemp("judged")
    return write_conversations(
        folder, {"places": {"train": [r for r in rows if r not in rows[5::12]], "heldout": rows[5::12]}}
    )


@pytest.fixture
def config(tuning) -> dict:
    settings = {"model": "chat", "corpus": "judged", "sequence_length": 64, "budget": {"steps": 40}, "samples": 2}
    return {**tuning, **settings, "batch_size": 8, "optimizer": {"use": "adamw", "lr": 3e-3, "weight_decay": 0.0}}


@pytest.fixture(scope="session")
def tuned(chat, judged, tmp_path_factory):
    """DPO in full on `chat`."""
    from .conftest import TUNING

    settings = {"model": "chat", "corpus": "judged", "sequence_length": 64, "budget": {"steps": 40}, "samples": 2}
    config = {**TUNING, **settings, "batch_size": 8, "optimizer": {"use": "adamw", "lr": 3e-3, "weight_decay": 0.0}}
    return make("preference", config, tmp_path_factory.mktemp("tuned"), inputs={"chat": chat, "judged": judged})


def test_the_better_answer_wins_on_held_out_pairs(tuned):
    found = tuned.facts["preference"]["places"]
    assert found["pairs"] == 11
    assert (found["before"]["reward_margin"], found["before"]["reward_accuracy"]) == (0, 0.5)
    assert found["after"]["reward_accuracy"] > 0.8
    assert found["after"]["reward_margin"] > 0.1
    assert found["after"]["likelier"] > found["before"]["likelier"]
    assert len(tuned.facts["samples"]) == 2
    assert set(tuned.facts["samples"][0]["answers"]) == {"before", "after", "in the data", "rejected"}
    assert tuned.facts["tables"][-1]["columns"] == ["", "before", "after"]


def test_only_the_two_answers_are_learned_and_their_ends_of_turn(tuned, chat):
    from transformers import AutoTokenizer

    from recipe_plugins.training.pairs import Documents

    tokenizer, documents = AutoTokenizer.from_pretrained(chat.payload), Documents(tuned.path / "work/examples")
    for number, answer in enumerate(("Near a.<|im_end|>", "With a.<|im_end|>")):
        ids, labels = documents[number]
        asked = "<|im_start|>user\nWhere is ab kept?<|im_end|>\n<|im_start|>assistant\n"
        assert tokenizer.decode(ids) == asked + answer + "\n"
        assert tokenizer.decode(ids[labels != -100]) == answer
        assert (labels[labels != -100] == ids[labels != -100]).all()
    report = json.loads((tuned.path / "preparation.json").read_text())
    assert report["rows"] == {"read": 121, "kept": 121, "truncated": 0}
    assert report["answers"] == report["end_of_turn_supervised"] == 242
    shown = {table["title"]: table["rows"] for table in tuned.facts["tables"]}
    assert shown["ends of turn"] == [["assistant", 242, 0], ["user", 0, 242]]
    first, second, *_ = shown["rows as they are trained on"]
    for (name, row), which, answer in ((first, "chosen", "Near a."), (second, "rejected", "With a.")):
        assert name.endswith(f", {which}")
        assert "".join(text for text, learned in row["marked"] if learned) == f"{answer}<|im_end|>"


def test_in_a_dialogue_only_what_differs_is_learned(chat):
    from transformers import AutoTokenizer

    from recipe_plugins.training.conversations import Renderer
    from recipe_plugins.training.pairs import judged_answers

    tokenizer = AutoTokenizer.from_pretrained(chat.payload)
    talk = [*turn("Where?", "Here.")["messages"], *turn("Sure?", "Yes.")["messages"]]
    record = Record("x", messages=talk, meta={"preference": {"prompt": 3, "rejected": turn("", "No.")["messages"][1:]}})
    ((chosen, rejected),), _ = judged_answers([record], Renderer(tokenizer), paired=True, sequence_length=99)
    for answer, text in ((chosen, "Yes."), (rejected, "No.")):
        ids, labels = answer.document
        assert tokenizer.decode(ids[labels != -100]) == text + "<|im_end|>"


def test_the_first_step_s_loss_is_ln_2_and_its_margins_nothing(chat, judged, config, tmp_path):
    context = LocalContext(tmp_path, inputs={"chat": chat, "judged": judged})
    slot("stage", {"use": "preference", **config, "budget": {"steps": 1}}).build().run(context)
    assert context.rows[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert context.rows[0]["reward_margin"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("adapter", [None, {"use": "lora", "r": 8, "alpha": 16}])
def test_with_rounded_weights_the_reference_is_rounded_as_they_are(chat, judged, config, tmp_path, adapter):
    changes = {"precision": "bf16-master", "adapter": adapter, "budget": {"steps": 20}, "samples": 0}
    context = LocalContext(tmp_path, inputs={"chat": chat, "judged": judged})
    slot("stage", {"use": "preference", **config, **changes}).build().run(context)
    assert context.rows[0]["loss"] == pytest.approx(0.693147, abs=1e-4)
    assert context.rows[0]["reward_margin"] == pytest.approx(0, abs=2e-4)
    assert context.facts["preference"]["places"]["after"]["reward_accuracy"] > 0.8


def test_micro_batches_do_not_change_the_step(chat, judged, config, tmp_path):
    """Neither of pairs nor of single answers, whose distance to the reference is that of the whole step."""
    for objective in ("dpo", "kto"):
        rows = []
        for size in (8, 3):
            context = LocalContext(tmp_path / f"{objective}{size}", inputs={"chat": chat, "judged": judged})
            changes = {"objective": objective, "budget": {"steps": 3}, "samples": 0, "heldout_pairs": 0}
            execution = {**config["execution"], "micro_batch": size}
            slot("stage", {"use": "preference", **config, **changes, "execution": execution}).build().run(context)
            rows.append([(row["loss"], row["grad_norm"], row["reward_margin"]) for row in context.rows])
        for one, other in zip(*rows, strict=True):
            assert one == pytest.approx(other, rel=2e-3, abs=1e-5), objective


@pytest.mark.parametrize("objective", ["ipo", "kto", "orpo", "simpo"])
def test_every_objective_raises_its_own_margin(chat, judged, config, tmp_path, objective):
    changes = {"objective": objective, "adapter": {"use": "lora", "r": 8, "alpha": 16}, "samples": 0}
    made = make("preference", {**config, **changes}, tmp_path, inputs={"chat": chat, "judged": judged})
    found = made.facts["preference"]["places"]
    assert made.type == "adapter"
    assert found["after"]["reward_margin"] > found["before"]["reward_margin"]
    assert found["after"]["reward_accuracy"] >= 0.75
    assert list((made.path / "work").glob("log-probs-*")) == (
        [] if objective in ("orpo", "simpo") else [made.path / "work/log-probs-000000"]
    )


def test_single_answers_are_learned_from_too(chat, config, tmp_path):
    rows = [
        turn(f"Where is {a}{b} kept?", f"{word} {a}.", preference={"prompt": 1, "desirable": word == "Near"})
        for a in LETTERS[:8] for b in LETTERS[:8] if a != b for word in ("Near", "With")
    ]  # fmt: skip
    for number, row in enumerate(rows):
        row["id"] = str(number)
    corpus = write_conversations(tmp_path / "corpus", {"places": {"train": rows[16:], "heldout": rows[:16]}})
    inputs = {"chat": chat, "judged": corpus}
    made = make("preference", {**config, "objective": "kto"}, tmp_path / "made", inputs=inputs)
    after = made.facts["preference"]["places"]["after"]
    assert after["reward_desirable"] > after["reward_undesirable"]
    with pytest.raises(RecipeError, match="takes pairs"):
        make("preference", config, tmp_path / "dpo", inputs=inputs)


def test_a_mismatched_answer_is_another_prompt_s(chat, judged, config, tmp_path):
    from recipe_plugins.training.pairs import Documents

    changes = {"objective": "kto", "budget": {"steps": 1}, "samples": 0, "heldout_pairs": 0}
    made = make("preference", {**config, **changes}, tmp_path, inputs={"chat": chat, "judged": judged})
    documents = Documents(made.path / "work/examples")
    assert len(documents) == 484  # of 121 pairs two answers each, with a mismatched one
    owners: dict = {}
    for ids, labels in documents[::2]:
        start = int((labels != -100).argmax())
        owners.setdefault(tuple(ids[start:]), set()).add(tuple(ids[:start]))
    for number in range(0, 484, 2):
        (ids, labels), (others, learned) = documents[number], documents[number + 1]
        start = int((labels != -100).argmax())
        assert (ids[:start] == others[:start]).all(), "the prompt is its own"
        assert (learned[:start] == -100).all()
        assert (learned[start:-1] != -100).all()
        assert owners[tuple(others[start:])] - {tuple(ids[:start])}, "the answer is another prompt's"

    def answers(first, step):
        return {tuple(ids[int((labels != -100).argmax()) :]) for ids, labels in documents[first::step]}

    assert answers(1, 4) <= answers(0, 4), "after a chosen answer's prompt a chosen one"
    assert answers(3, 4) <= answers(2, 4), "and a rejected one after a rejected one's: as many of both"


class Stopped(LocalContext):
    def stopping(self) -> bool:
        return len(self.rows) >= 4


def test_an_interrupted_run_ends_with_the_same_bytes_and_the_same_reference(chat, judged, config, tmp_path):
    config |= {"budget": {"steps": 8}, "adapter": {"use": "lora", "r": 4, "dropout": 0.1}, "objective": "kto"}
    inputs = {"chat": chat, "judged": judged}
    whole = make("preference", config, tmp_path / "whole", inputs=inputs)
    stage = slot("stage", {"use": "preference", **config})
    with pytest.raises(Interrupted):
        stage.build().run(Stopped(tmp_path / "cut", inputs=inputs))
    kept = tmp_path / "cut" / "work" / "log-probs-000000" / "facts.json"
    os.utime(kept, ns=(1, 1))
    context = LocalContext(tmp_path / "cut", inputs=inputs)
    stage.build().run(context)
    assert kept.stat().st_mtime_ns == 1, "the reference is read again, never computed again"
    assert context.rows[0]["step"] == 6
    assert folder_files(context.payload) == folder_files(whole.payload)
    stage.build().run(context)  # as if killed after the last step, before all was measured
    assert folder_files(context.payload) == folder_files(whole.payload)


@pytest.mark.parametrize("together", [False, True])
def test_ranks_divide_the_reference_unless_the_model_is_divided(config, tmp_path, monkeypatch, together):
    from concurrent.futures import ThreadPoolExecutor
    from threading import Barrier

    import numpy as np

    from recipe_plugins.preference import stage

    monkeypatch.setattr(stage, "CHUNK", 4)
    documents, asked, both = list(range(18)), {0: [], 1: []}, Barrier(2)

    def reference(rank: int) -> list[float]:
        def log_probs(_, part: list[int]) -> np.ndarray:
            if together:
                both.wait(10)  # as the collectives of a sharded model do
            asked[rank].extend(part)
            return np.array(part, np.float32)

        made = slot("stage", {"use": "preference", **config}).build()
        made._log_probs = log_probs
        learner = SimpleNamespace(ctx=LocalContext(tmp_path, rank=rank, world_size=2), together=together)
        return made._reference(learner, None, documents).tolist()

    with ThreadPoolExecutor(2) as ranks:
        found = list(ranks.map(reference, (0, 1)))
    assert found == [documents, documents]
    parts = {0: [*range(4), *range(8, 12), 16, 17], 1: [*range(4, 8), *range(12, 16)]}
    assert asked == ({0: documents, 1: documents} if together else parts)


def test_what_cannot_be_learned_from_is_counted(chat, judged, config, conversations, tmp_path):
    good = [pair(f"Where is {n}?", "Here.", "There.") for n in range(17)]
    bad = [
        pair("Where is it?", "Here.", "Here."),
        pair("Where is all?", "Here.", "There, and there, and further. " * 9),
        pair("Where is none?", "Here.", "<|im_end|>"),
    ]
    corpus = write_conversations(tmp_path / "corpus", {"places": {"train": good + bad}})
    settings = {**config, "budget": {"epochs": 1}, "max_dropped": 0.2}
    made = make("preference", settings, tmp_path / "made", inputs={"chat": chat, "judged": corpus})
    report = made.facts["preparation"]
    assert report["dropped"] == {"chosen-is-rejected": 1, "control-token-in-content": 1, "too-long": 1}
    assert report["rows"] == {"read": 20, "kept": 17, "truncated": 0}
    assert made.facts["steps"] == 3
    assert made.manifest["warnings"] == ["the corpus has no held-out judgement, so margins are not measured"]
    with pytest.raises(RecipeError, match=r"3 of 20 conversations \(15\.0%\).*chosen-is-rejected"):
        make("preference", {**settings, "max_dropped": 0.1}, tmp_path / "few", inputs={"chat": chat, "judged": corpus})
    plain = conversations(tmp_path / "plain", {"places": {"train": [("Where?", "Here.")]}})
    with pytest.raises(RecipeError, match="has no judgement"):
        make("preference", settings, tmp_path / "none", inputs={"chat": chat, "judged": plain})


def test_the_adapter_loads_with_peft_and_the_model_with_transformers(chat, tuned, judged, config, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(tuned.payload)
    settings = {**config, "budget": {"steps": 1}, "adapter": {"use": "lora", "r": 4}}
    made = make("preference", settings, tmp_path, inputs={"chat": chat, "judged": judged})
    assert made.facts["base"] == chat.digest
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(chat.payload), made.payload)
    assert model.get_nb_trainable_parameters()[1] == made.facts["parameters"]


def test_its_adapter_can_be_merged_and_what_it_noted_be_expected(chat, judged, config, tmp_path):
    settings = {**config, "budget": {"steps": 8}, "adapter": {"use": "lora", "r": 4}, "samples": 0}
    made = make("preference", settings, tmp_path / "made", inputs={"chat": chat, "judged": judged})
    inputs = {"chat": chat, "made": made, "judged": judged}
    merged = make("merge", {"model": "chat", "adapter": "made", "corpus": "judged"}, tmp_path / "merged", inputs=inputs)
    assert merged.facts["merge"]["difference"] <= 1e-4
    metric = "made.facts.preference.places.after.reward_accuracy"
    asked = {"models": {"chat": "chat", "made": "made"}, "corpora": {"pairs": "judged"}}
    evaluated = make(
        "evaluate",
        {**asked, "expect": {"told apart": {"metric": metric, "above": 0.5}}},
        tmp_path / "ok",
        inputs=inputs,
    )
    assert evaluated.facts["expectations"][0]["holds"]
    assert "facts" not in evaluated.results()["models"]["made"], "what is in the payload is measured here"
    for wrong, says in (({"above": 1.1}, "does not hold"), ({"metric": metric + "x", "above": 0}, "nothing is called")):
        with pytest.raises(RecipeError, match=says):
            make("evaluate", {**asked, "expect": {"x": {"metric": metric, **wrong}}}, tmp_path / says, inputs=inputs)


def test_the_estimate_is_what_was_trained(chat, tuned, config):
    known = Known({"model": KnownInput(chat.facts, chat.payload)})
    estimate = slot("stage", {"use": "preference", **config}).config.estimate(known)
    assert (estimate.parameters, estimate.trainable) == (tuned.facts["parameters"], tuned.facts["trainable"])
    assert estimate.steps == tuned.facts["steps"]
    with pytest.raises(ValueError, match="in epochs or steps"):
        slot("stage", {"use": "preference", **config, "budget": {"tokens": 1000}})


@pytest.mark.parametrize("objective", ["dpo", "kto"])
def test_in_fp16_the_reference_is_rounded_as_what_trains(chat, judged, config, tmp_path, objective):
    """So that the first step begins at no margin at all; without autocast around both it would be some 1e-3."""
    half = {**config, "precision": "fp16", "budget": {"steps": 2}, "objective": objective, "samples": 0}
    context = LocalContext(tmp_path, inputs={"chat": chat, "judged": judged})
    slot("stage", {"use": "preference", **half}).build().run(context)
    assert context.rows[0]["loss"] == pytest.approx(math.log(2) if objective == "dpo" else 0.5, abs=1e-6)
    assert context.rows[0]["reward_margin"] == pytest.approx(0, abs=1e-5)
