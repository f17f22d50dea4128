"""The stage `sft`, from a corpus to a model that answers."""

from __future__ import annotations

import json

import pytest

from recipe_runner import Corpus, Interrupted, Known, KnownInput, RecipeError, Record
from recipe_runner.identity import folder_files
from recipe_runner.testing import LocalContext, make, slot

pytestmark = pytest.mark.slow


def test_the_model_learns_to_answer_and_to_stop(chat, tiny_base, questions, tuning, tmp_path):
    before = make("sft", {**tuning, "model": "b", "corpus": "q", "budget": {"steps": 1}, "optimizer": {"lr": 1e-9}},
                  tmp_path, inputs={"b": tiny_base, "q": questions}).facts["answers"]["places"]  # fmt: skip
    after = chat.facts["answers"]["places"]
    assert before["answers"] == after["answers"] == 12
    assert after["own"]["content"] < before["own"]["content"] - 1
    assert after["own"]["end_of_turn"] < min(1.0, before["own"]["end_of_turn"] - 1)


def test_what_was_prepared_is_on_the_table(chat):
    report = json.loads((chat.path / "preparation.json").read_text())
    assert report == chat.facts["preparation"]
    assert report["rows"] == {"read": 132, "kept": 132, "truncated": 0}
    assert report["answers"] == report["end_of_turn_supervised"] == 132
    assert 0 < report["supervised_share"] < 1
    assert report["packed_rows"] < 132
    samples = json.loads((chat.path / "samples.json").read_text())
    learned = ["".join(part["text"] for part in sample["parts"] if part["learned"]) for sample in samples]
    assert all(text.startswith("With ") and text.endswith(".<|im_end|>") for text in learned)
    shown = {table["title"]: table["rows"] for table in chat.facts["tables"]}
    assert shown["ends of turn"] == [["assistant", 132, 0], ["user", 0, 132]]
    assert sum(rows for _, rows in shown["rows by length"]) == 132
    marked = [[text for text, on in row["marked"] if on] for _, row in shown["rows as they are trained on"]]
    assert ["".join(texts) for texts in marked] == learned


def test_the_payload_loads_and_generation_ends_with_the_turn(chat):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(chat.payload)
    model = AutoModelForCausalLM.from_pretrained(chat.payload)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end in model.generation_config.eos_token_id
    assert model.config.use_cache
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Where is ab kept?"}], add_generation_prompt=True, return_tensors="pt"
    )
    reply = model.generate(**prompt, max_new_tokens=20, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert reply[-1] == end


def test_what_is_learned_is_what_trl_would_learn(chat, tmp_path):
    """Its mask by generation marks, as its trainer prepares and collates it, token by token."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    from recipe_plugins.training.conversations import Renderer

    tokenizer = AutoTokenizer.from_pretrained(chat.payload)
    turns = ["Be brief.", "Where is ab?", "Near a.", "Sure?", "  Yes.\n\nNear it."]
    roles = ["system", "user", "assistant", "user", "assistant"]
    talk = [{"role": role, "content": text} for role, text in zip(roles, turns, strict=True)]
    theirs = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(chat.payload),
        SFTConfig(str(tmp_path), assistant_only_loss=True, max_length=None, report_to="none", use_cpu=True,
                  bf16=False, per_device_train_batch_size=1, dataloader_pin_memory=False),
        train_dataset=Dataset.from_list([{"messages": talk}]),
        processing_class=tokenizer,
    )  # fmt: skip
    batch = next(iter(theirs.get_train_dataloader()))
    (ours,) = Renderer(tokenizer).encode([Record("x", messages=talk)])
    assert ours.input_ids.tolist() == batch["input_ids"][0].tolist()
    assert ours.labels.tolist() == batch["labels"][0].tolist()


class Stopped(LocalContext):
    """Is asked to stop after so many steps."""

    def __init__(self, *arguments, after: int, **settings) -> None:
        super().__init__(*arguments, **settings)
        self.after = after

    def stopping(self) -> bool:
        return len(self.rows) + 1 >= self.after  # asked before the step's row is out


def test_an_interrupted_run_ends_with_the_same_bytes(chat, tiny_base, questions, tuning, tmp_path):
    stage = slot("stage", {"use": "sft", **tuning, "model": "b", "corpus": "q", "budget": {"steps": 80}})
    inputs = {"b": tiny_base, "q": questions}
    with pytest.raises(Interrupted):
        stage.build().run(Stopped(tmp_path, inputs=inputs, after=13))
    prepared = (tmp_path / "work/rows/input_ids.npy").stat().st_mtime_ns
    context = LocalContext(tmp_path, inputs=inputs)
    stage.build().run(context)
    assert context.rows[0]["step"] == 14
    assert (tmp_path / "work/rows/input_ids.npy").stat().st_mtime_ns == prepared
    assert folder_files(context.payload) == folder_files(chat.payload)


def test_answers_that_do_not_fit_fail_before_training(tiny_base, conversations, tuning, tmp_path):
    pairs = [(f"Where is {n}?", "Here.") for n in range(49)] + [("Where is it?", "There, and much further. " * 9)]
    corpus = conversations(tmp_path / "corpus", {"places": {"train": pairs}})
    with pytest.raises(RecipeError, match=r"1 of 50 conversations \(2\.0%\).*max_dropped: 1\.0%: 1 too-long") as caught:
        make("sft", {**tuning, "model": "b", "corpus": "c", "sequence_length": 64}, tmp_path / "chat",
             inputs={"b": tiny_base, "c": corpus})  # fmt: skip
    assert caught.value.next.startswith("set sequence_length to ")
    assert not (tmp_path / "chat" / "work" / "checkpoints").exists()


def test_text_is_refused(tiny_base, tiny_corpus, tuning, tmp_path):
    assert isinstance(tiny_corpus, Corpus)
    with pytest.raises(RecipeError, match="plain text"):
        make("sft", {**tuning, "model": "b", "corpus": "c"}, tmp_path, inputs={"b": tiny_base, "c": tiny_corpus})


def test_the_estimate_is_what_was_trained(chat, tiny_base, tuning):
    config = slot("stage", {"use": "sft", **tuning, "model": "b", "corpus": "q", "budget": {"steps": 80}}).config
    estimate = config.estimate(Known({"model": KnownInput(tiny_base.facts, tiny_base.payload)}))
    facts = chat.facts
    assert (estimate.parameters, estimate.trainable) == (facts["parameters"], facts["trainable"])
    assert (estimate.steps, estimate.tokens) == (facts["steps"], facts["tokens"])
