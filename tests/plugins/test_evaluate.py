"""The stage `evaluate`: models side by side, what is expected of them, and talking to one."""

from __future__ import annotations

import json

import pytest

from recipe_plugins.evaluate.config import Expectation, lookup
from recipe_plugins.evaluate.results import check, compared, tables
from recipe_runner import Artifact, RecipeError
from recipe_runner.testing import make, slot

CPU = {"execution": {"device": "cpu", "threads": 1}}
MODELS = {
    "base": {"bits_per_byte": {"prose": 2.0, "std.lib": 3.0}, "answers": {}, "samples": {"Hi?": "a"}},
    "chat": {"bits_per_byte": {"prose": 2.5, "std.lib": 2.9}, "answers": {"q": {"where": {"own": {"content": 0.5}}}},
             "samples": {"Hi?": "b"}},
}  # fmt: skip


def test_change_is_from_the_first_model_and_samples_stand_side_by_side():
    results = compared(MODELS, ["Hi?"])
    assert results["models"]["chat"]["change"] == {"prose": 0.5, "std.lib": -0.1}
    assert results["samples"] == [{"prompt": "Hi?", "answers": {"base": "a", "chat": "b"}}]
    shown = {table["title"]: table for table in tables(results)}
    assert shown["bits per byte of held-out text"]["rows"] == [["prose", 2.0, 2.5], ["std.lib", 3.0, 2.9]]
    assert shown["loss of answers, nats a token"]["rows"] == [["q where own content", None, 0.5]]


def test_a_domain_that_a_model_was_not_scored_in_has_no_change_and_a_gap_in_the_table():
    found = {**MODELS, "base": {**MODELS["base"], "bits_per_byte": {"prose": 2.0}}}
    results = compared(found, ["Hi?"])
    assert results["models"]["base"]["change"] == {"prose": 0.0}
    assert results["models"]["chat"]["change"] == {"prose": 0.5}
    assert results["models"]["chat"]["bits_per_byte"]["std.lib"] == 2.9
    shown = {table["title"]: table for table in tables(results)}
    assert shown["bits per byte of held-out text"]["rows"] == [["prose", 2.0, 2.5], ["std.lib", None, 2.9]]


def test_a_metric_is_found_by_its_path_even_where_names_have_dots():
    assert lookup(MODELS, "base.bits_per_byte.std.lib") == 3.0
    assert lookup(MODELS, "chat.answers.q.where.own.content") == 0.5
    assert lookup(MODELS, "chat.answers.q.where") is None
    assert lookup(MODELS, "chat.bits_per_byte.code") is None


def test_what_does_not_hold_fails_with_a_line_for_each():
    good = Expectation(metric="chat.bits_per_byte.std.lib", below="base.bits_per_byte.std.lib", by=0.05)
    bad = Expectation(metric="chat.bits_per_byte.prose", below="base.bits_per_byte.prose", by=0.05)
    number = Expectation(metric="chat.answers.q.where.own.content", above=0.4)
    assert all(line["holds"] for line in check({"good": good, "number": number}, MODELS))
    with pytest.raises(RecipeError) as caught:
        check({"good": good, "bad": bad}, MODELS)
    assert "ok    good:" in str(caught.value)
    assert "FAIL  bad: chat.bits_per_byte.prose = 2.5, expected <= base.bits_per_byte.prose = 2 - 0.05" in (
        caught.value.what
    )
    with pytest.raises(RecipeError, match="nothing is called"):
        check({"typo": Expectation(metric="chat.bits_per_byte.cod", below=1.0)}, MODELS)


@pytest.mark.parametrize(
    ("expectation", "says"),
    [
        ({"metric": "chatt.bits_per_byte.prose", "below": 1}, "did you mean 'chat'"),
        ({"metric": "chat.bits_per_bite.prose", "below": 1}, "did you mean 'bits_per_byte'"),
        ({"metric": "chat.bits_per_byte.prose"}, "exactly one of below and above"),
        ({"metric": "chat", "below": 1}, "pattern"),
    ],
)
def test_an_expectation_that_names_nothing_is_found_before_anything_runs(expectation, says):
    with pytest.raises(ValueError, match=says):
        slot("stage", {"use": "evaluate", "models": {"chat": "chat"}, "expect": {"it": expectation}})


@pytest.fixture(scope="module")
def merged(chat, adapter, tmp_path_factory):
    config = {"model": "chat", "adapter": "adapter", **CPU}
    return make("merge", config, tmp_path_factory.mktemp("merged"), inputs={"chat": chat, "adapter": adapter})


@pytest.fixture(scope="module")
def evaluation(tiny_base, chat, adapter, merged, tiny_corpus, questions, facts, tmp_path_factory):
    config = {
        "models": {"base": "base", "chat": "chat", "adapter": "adapter", "merged": "merged"},
        "corpora": {
            "text": "text",
            "questions": {"corpus": "questions", "by": "kind"},
            "skill": {"corpus": "facts", "split": "train", "exact_match": True},
        },
        "prompts": ["Where is ab kept?", "Who founded Vexmar?"],
        "expect": {
            "it answers": {
                "metric": "chat.answers.questions.where.own.content",
                "below": "base.answers.questions.where.own.content",
                "by": 0.3,
            }
        },
        **CPU,
    }
    inputs = {"base": tiny_base, "chat": chat, "adapter": adapter, "merged": merged, "text": tiny_corpus,
              "questions": questions, "facts": facts}  # fmt: skip
    return make("evaluate", config, tmp_path_factory.mktemp("evaluation"), inputs=inputs)


@pytest.mark.slow
def test_a_fact_is_unknown_before_known_after_and_known_after_merging(evaluation):
    models = evaluation.results()["models"]
    known = {label: measures["exact_match"]["skill"]["facts"] for label, measures in models.items()}
    assert known["base"] == known["chat"] == 0
    assert known["adapter"] == known["merged"] > 0.5


@pytest.mark.slow
def test_a_merged_model_measures_as_base_and_adapter_do(evaluation):
    models = evaluation.results()["models"]
    for measure in ("bits_per_byte", "change"):
        assert models["merged"][measure] == pytest.approx(models["adapter"][measure], abs=1e-4)
    assert models["merged"]["answers"]["skill"]["facts"]["own"] == pytest.approx(
        models["adapter"]["answers"]["skill"]["facts"]["own"], abs=1e-4
    )


@pytest.mark.slow
def test_the_question_matters_and_results_are_what_is_noted(evaluation, chat):
    results = evaluation.results()
    found = results["models"]["chat"]["answers"]["questions"]["where"]
    assert found["own"]["content"] < found["permuted"]["content"]
    assert found["own"] == pytest.approx(chat.facts["answers"]["places"]["own"], abs=1e-5)
    assert set(results["models"]["chat"]["bits_per_byte"]) == {"prose", "code"}
    assert evaluation.facts["models"] == results["models"]
    assert [sample["prompt"] for sample in evaluation.facts["samples"]] == ["Where is ab kept?", "Who founded Vexmar?"]
    assert results["samples"][0]["answers"]["merged"] == results["samples"][0]["answers"]["adapter"]
    assert [line["holds"] for line in evaluation.facts["expectations"]] == [True]


@pytest.mark.slow
def test_models_that_were_measured_are_not_measured_again(chat, questions, tmp_path):
    (tmp_path / "work").mkdir(parents=True)
    (tmp_path / "work/chat.json").write_text(json.dumps({"bits_per_byte": {}, "answers": {"seen": {}}, "samples": {}}))
    config = {"models": {"chat": "chat"}, "corpora": {"questions": "questions"}, **CPU}
    made = make("evaluate", config, tmp_path, inputs={"chat": chat, "questions": questions})
    assert made.results()["models"]["chat"]["answers"] == {"seen": {}}


@pytest.mark.slow
def test_an_adapter_needs_its_base_among_the_models(adapter, tiny_base, tmp_path):
    config = {"models": {"base": "base", "adapter": "adapter"}, "prompts": ["Hi?"], **CPU}
    with pytest.raises(RecipeError, match="not among the models"):
        make("evaluate", config, tmp_path, inputs={"base": tiny_base, "adapter": adapter})


@pytest.mark.slow
def test_chat_answers_a_prompt_and_the_lines_of_stdin(chat, evaluation, capsys, monkeypatch):
    import io

    talk = slot("chat", {"use": "default", "device": "cpu"}).build()
    talk.run(chat.payload, "Where is ab kept?")
    once = capsys.readouterr()
    assert once.out == evaluation.facts["samples"][0]["answers"]["chat"] + "\n"
    monkeypatch.setattr("sys.stdin", io.StringIO("Where is ab kept?\n\nWhere is cd kept?\n"))
    talk.run(chat.payload, None)
    twice = capsys.readouterr().out.splitlines()
    assert len(twice) == 2
    assert twice[0] + "\n" == once.out


def test_the_name_of_a_model_is_no_path():
    with pytest.raises(ValueError, match="has a slash: call it something"):
        slot("stage", {"use": "evaluate", "models": {"org/name": "org/name"}})


@pytest.mark.slow
def test_a_model_of_few_learned_positions_is_never_asked_beyond_them(chat, questions, tmp_path):
    import torch
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    tokenizer, inputs = AutoTokenizer.from_pretrained(chat.payload), {"questions": questions}
    torch.manual_seed(0)
    sizes = {"vocab_size": len(tokenizer), "n_positions": 48, "n_embd": 16, "n_layer": 1, "n_head": 2}
    for name in ("one", "two"):
        model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=None, eos_token_id=tokenizer.eos_token_id))
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        inputs[name] = Artifact(tmp_path / name, name, {})
    entry = {"corpus": "questions", "exact_match": True}
    config = {"models": {"one": "one"}, "corpora": {"places": entry}, "prompts": ["a" * 9, "a" * 90], **CPU}
    found = make("evaluate", config, tmp_path / "evaluation", inputs=inputs)
    assert found.facts["sequence_length"] == 48
    short, long = (sample["answers"]["one"] for sample in found.facts["samples"])
    assert len(short) > len(long) == len(" …")
    config = {"models": {"one": "one", "two": "two"}, "method": "linear", "corpus": "questions", **CPU}
    merged = make("merge", config, tmp_path / "merged", inputs=inputs)
    assert merged.facts["merge"]["loss"] > 0
