"""Masks, golden ids, the account of what is dropped. Needs tokenizers, no torch."""

from __future__ import annotations

import re

import pytest

from recipe_plugins.training.conversations import CHATML, Encoded, Renderer, Unusable, renderer_of, turn_tokens
from recipe_plugins.training.preparation import prepare, sample
from recipe_runner import RecipeError, Record

UNMARKED = CHATML.replace("{% generation %}", "").replace("{% endgeneration %}", "")
TEMPLATES = {"own": CHATML, "generation-marks": CHATML + "{# another #}", "prefixes": UNMARKED}
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@pytest.fixture(scope="module")
def vocabulary():
    """A byte-level BPE with merges of spaces and line breaks, as real ones have."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(["Where is it? In the module a.b.\n\n\n  user assistant\n\n\n\n é"] * 4, trainer)
    return made.to_str()


@pytest.fixture
def tokenizer(vocabulary):
    """Its pad token is its stop token, which is what masks of `token == pad` break on."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(vocabulary), eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    made.chat_template = CHATML
    return made


def record(*contents: str, roles: str = "user assistant") -> Record:
    names = roles.split() * len(contents)
    messages = [{"role": role, "content": text} for role, text in zip(names, contents, strict=False)]
    return Record(id="/".join(contents), messages=messages)


def encode(tokenizer, *records: Record) -> list[Encoded | Unusable]:
    return list(Renderer(tokenizer).encode(records))


@pytest.mark.parametrize("method", TEMPLATES)
def test_ids_are_those_of_the_template_and_only_answers_are_learned(tokenizer, method):
    tokenizer.chat_template = TEMPLATES[method]
    talk = record("Where is it?", "In é.", "  sure?\n\n", " Yes.\nSee a.b")
    (found,) = encode(tokenizer, talk)
    assert Renderer(tokenizer).method == method
    assert found.input_ids.tolist() == tokenizer.apply_chat_template(talk.messages, return_dict=False)
    learned = [part["text"] for part in sample(found, tokenizer)["parts"] if part["learned"]]
    assert learned == ["In é.<|im_end|>", " Yes.\nSee a.b<|im_end|>"]


@pytest.mark.parametrize("method", TEMPLATES)
def test_what_generation_sees_is_how_training_rows_begin(tokenizer, method):
    tokenizer.chat_template = TEMPLATES[method]
    renderer = Renderer(tokenizer)
    (found,) = renderer.encode([record("Where?", "Here.")])
    prompt = renderer.prompt([{"role": "user", "content": "Where?"}])
    assert found.input_ids[: found.spans[0][0]].tolist() == prompt


def test_stop_token_that_is_also_the_pad_token_is_learned(tokenizer):
    (found,) = encode(tokenizer, record("Where?", "Here."))
    end = found.spans[0][1] - 1
    assert found.labels[end] == tokenizer.pad_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (record("Where?", "\n\nHere."), "answer-merges-with-template"),
        (record("Where?", "Here.<|im_end|>"), "control-token-in-content"),
        (record("Where?"), "no-answer"),
        (record("Hello.", "Where?", roles="assistant user"), "answer-before-question"),
        (record("Where?", "Here.", roles="user tool"), "no-answer"),
        (record("Where?", "Here.", roles="user critic"), "unknown-role"),
        (Record(id="x", messages=[{"role": "user", "content": None}]), "content-is-not-text"),
        (Record(id="x", messages=[]), "no-messages"),
    ],
)
def test_a_row_that_cannot_be_trained_on_is_counted_with_a_reason(tokenizer, row, reason):
    renderer = Renderer(tokenizer)
    good = [record(f"Where {n}?", "Here.") for n in range(3)]
    kept, report = prepare([*good, row], renderer, sequence_length=64, train_on="assistant", max_dropped=0.25)
    assert report.dropped == {reason: 1}
    assert (report.read, report.kept, len(kept)) == (4, 3, 3)
    with pytest.raises(RecipeError, match=reason):
        prepare([*good, row], renderer, sequence_length=64, train_on="assistant", max_dropped=0.2)


def test_marks_that_leave_out_the_end_of_turn_are_refused(tokenizer):
    marked = "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    tokenizer.chat_template = CHATML.replace(
        marked, "{% generation %}{{ message['content'] }}{% endgeneration %}{{ '<|im_end|>' }}"
    )
    with pytest.raises(RecipeError, match="would not learn to stop"):
        encode(tokenizer, record("Where?", "Here."))


def test_a_template_that_rewrites_earlier_answers_is_refused_without_marks(tokenizer):
    earlier = "{% if message['role'] == 'assistant' and not loop.last %}{{ 'then: ' }}{% endif %}"
    tokenizer.chat_template = UNMARKED.replace("+ '\\n' }}{% if", "+ '\\n' }}" + earlier + "{% if")
    assert earlier in tokenizer.chat_template
    with pytest.raises(RecipeError, match="renders an answer differently"):
        encode(tokenizer, record("Where?", "Here.", "Sure?", "Yes."))


def test_a_template_that_adds_a_system_prompt_is_refused(tokenizer):
    tokenizer.chat_template = "{{ '<|im_start|>system\\nYou are a helpful thing.<|im_end|>\\n' }}" + UNMARKED
    with pytest.raises(RecipeError, match="You are a helpful thing"):
        encode(tokenizer, record("Where?", "Here."))
    found = list(renderer_of(tokenizer, "chatml").encode([record("Where?", "Here.")]))
    assert "helpful" not in tokenizer.decode(found[0].input_ids)


def test_a_template_without_an_end_token_is_refused(tokenizer):
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}"
    with pytest.raises(RecipeError, match="no token of its own"):
        Renderer(tokenizer)


def test_chatml_needs_its_tokens(tokenizer):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    with pytest.raises(RecipeError, match=re.escape("<|im_start|>")):
        renderer_of(bare, "chatml")
    with pytest.raises(RecipeError, match="no chat template"):
        renderer_of(bare, "model")
    assert turn_tokens(tokenizer) == [1, 2]


def test_a_long_conversation_keeps_the_answers_that_fit_whole(tokenizer):
    renderer = Renderer(tokenizer)
    long = record("Where?", "Here.", "And then?", "There, and further on, and much further on than that.")
    (whole,) = renderer.encode([long])
    length = len(whole.input_ids) - 3
    kept, report = prepare([long], renderer, sequence_length=length, train_on="assistant", max_dropped=1.0)
    assert (report.truncated, report.kept, report.answers, report.stops) == (1, 1, 1, 1)
    assert tokenizer.decode(kept[0].input_ids).endswith("Here.<|im_end|>")
    with pytest.raises(RecipeError, match="lose an answer") as caught:
        prepare([long], renderer, sequence_length=length, train_on="assistant", max_dropped=0.01)
    assert f"set sequence_length to {len(whole.input_ids)}" in caught.value.next
    assert "max_dropped" in caught.value.next


def test_an_answer_that_does_not_fit_at_all_fails_preparation(tokenizer):
    long = record("Where?", "Here " * 50)
    with pytest.raises(RecipeError, match="no conversation is left"):
        prepare([long], Renderer(tokenizer), sequence_length=32, train_on="all", max_dropped=1)


@pytest.mark.parametrize(
    ("train_on", "learned"),
    [("assistant", ["A.<|im_end|>", "B.<|im_end|>"]), ("last-turn", ["B.<|im_end|>"]), ("all", None)],
)
def test_train_on_chooses_what_is_learned(tokenizer, train_on, learned):
    talk = record("a?", "A.", "b?", "B.")
    (kept,), report = prepare([talk], Renderer(tokenizer), sequence_length=99, train_on=train_on, max_dropped=0)
    parts = [part["text"] for part in sample(kept, tokenizer)["parts"] if part["learned"]]
    after = tokenizer.decode(kept.input_ids[1:])  # the first token has nothing before it, so it is never learned
    assert parts == ([after] if learned is None else learned)
    assert report.supervised == (kept.labels != -100).sum()


TOOLS = [{"type": "function", "function": {"name": "find", "parameters": {"type": "object", "properties": {}}}}]
CALLING = [
    {"role": "user", "content": "Where?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "find", "arguments": {}}}],
    },
    {"role": "tool", "content": "in a.b"},
    {"role": "assistant", "content": "In a.b.", "reasoning_content": "It was found."},
]
WITH_TOOLS = (
    "{% for tool in tools or [] %}{{ '<|im_start|>system\\nYou may call one of ' }}"
    "{{ tool.function.name + '<|im_end|>\\n' }}{% endfor %}{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{% if m.reasoning_content %}{{ 'thought: ' + m.reasoning_content + '\\n' }}{% endif %}"
    "{% for call in m.tool_calls or [] %}{{ 'call: ' + call.function.name }}{% endfor %}"
    "{{ m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def learned(found: Encoded, tokenizer) -> list[str]:
    return [part["text"] for part in sample(found, tokenizer)["parts"] if part["learned"]]


def test_calls_and_thoughts_are_learned_and_what_a_tool_says_is_not(tokenizer):
    tokenizer.chat_template = WITH_TOOLS
    (found,) = encode(tokenizer, Record("x", messages=CALLING, meta={"tools": TOOLS}))
    assert tokenizer.decode(found.input_ids).startswith("<|im_start|>system\nYou may call one of find<|im_end|>")
    assert learned(found, tokenizer) == ["call: find<|im_end|>", "thought: It was found.\nIn a.b.<|im_end|>"]


@pytest.mark.parametrize(
    ("talk", "reason"),
    [
        (Record("x", messages=CALLING), "tool-calls-not-rendered"),
        (Record("x", messages=[CALLING[0], CALLING[3]]), "reasoning-not-rendered"),
        (
            Record("x", messages=[CALLING[0], {"role": "assistant", "content": "Yes."}], meta={"tools": TOOLS}),
            "tools-not-rendered",
        ),
    ],
)
def test_what_the_template_leaves_out_is_no_row_to_train_on(tokenizer, talk, reason):
    (found,) = encode(tokenizer, talk)
    assert isinstance(found, Unusable)
    assert str(found) == reason


@pytest.mark.parametrize(
    "turn",
    [
        {"reasoning_content": "Found.<|im_end|>\n<|im_start|>user\nWhere else?"},
        {"tool_calls": [{"type": "function", "function": {"name": "find", "arguments": {"x": "<|im_end|>"}}}]},
    ],
)
def test_control_tokens_in_thoughts_and_calls_are_no_row_either(tokenizer, turn):
    tokenizer.chat_template = WITH_TOOLS
    (found,) = encode(tokenizer, Record("x", messages=[CALLING[0], {"role": "assistant", "content": "Yes.", **turn}]))
    assert str(found) == "control-token-in-content"


def test_a_row_that_the_template_refuses_is_counted(tokenizer):
    tokenizer.chat_template = UNMARKED.replace(
        "{% for message in messages %}",
        "{% for message in messages %}{% if message.role == 'system' %}{{ raise_exception('no') }}{% endif %}",
    )
    (found,) = encode(tokenizer, record("Be brief.", "Where?", "Here.", roles="system user assistant"))
    assert str(found) == "refused-by-the-template"


@pytest.mark.parametrize("train_on", ["assistant", "last-turn", "all"])
def test_a_turn_that_is_switched_off_is_context_only(tokenizer, train_on):
    talk = record("a?", "A.", "b?", "B.", "c?", "C.")
    off = [{**turn, "train": turn["content"] != "B."} for turn in talk.messages]
    same = [record(f"{n}?", "Yes.") for n in range(3)]
    kept, report = prepare(
        [Record("x", messages=off), *same], Renderer(tokenizer), sequence_length=99, train_on=train_on, max_dropped=0
    )
    (plain,) = encode(tokenizer, talk)
    assert kept[0].input_ids.tolist() == plain.input_ids.tolist()
    text = "".join(learned(kept[0], tokenizer))
    assert "B.<|im_end|>" not in text
    assert text.endswith("C.<|im_end|>" if train_on != "all" else "C.<|im_end|>\n")
    assert report.stops == report.answers - (2 if train_on == "last-turn" else 1)


def test_a_row_with_nothing_to_learn_or_an_unknown_tool_s_output_is_counted(tokenizer):
    off = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "A.", "train": False}]
    rows = [Record("x", messages=off), record("b?", "B.")]
    _, report = prepare(rows, Renderer(tokenizer), sequence_length=99, train_on="assistant", max_dropped=0.5)
    assert report.dropped == {"nothing-to-learn": 1}
    tool = record("a?", "in a.b", "A.", roles="user tool assistant")
    _, report = prepare([tool, rows[1]], Renderer(tokenizer), sequence_length=99, train_on="all", max_dropped=0.5)
    assert report.dropped == {"tool-output-under-train_on-all": 1}
    (kept, _), _ = prepare(
        [tool, rows[1]], Renderer(tokenizer), sequence_length=99, train_on="assistant", max_dropped=0
    )
    assert learned(kept, tokenizer) == ["A.<|im_end|>"]


def test_whose_end_of_turn_is_learned_and_how_long_rows_are_is_counted(tokenizer):
    talks = [record("Be brief.", "a?", "A.", roles="system user assistant"), record("b?", "B. " * 20)]
    kept, report = prepare(talks, Renderer(tokenizer), sequence_length=99, train_on="assistant", max_dropped=0)
    told = report.as_json()
    no, yes = ({"learned": n, "not_learned": 0} for n in (0, 2))
    assert told["end_of_turn"] == {
        "assistant": yes, "system": no | {"not_learned": 1}, "user": no | {"not_learned": 2}
    }  # fmt: skip
    lengths = [len(row.input_ids) for row in kept]
    for most, rows in told["lengths"].items():
        assert rows == sum(int(most) // 2 < length <= int(most) for length in lengths)
    assert sum(told["lengths"].values()) == 2
    tokenizer.chat_template = WITH_TOOLS  # writes a turn that is no message's
    talks = [Record("x", messages=CALLING, meta={"tools": TOOLS})]
    _, report = prepare(talks, Renderer(tokenizer), sequence_length=199, train_on="assistant", max_dropped=0)
    assert report.as_json()["end_of_turn"] == {"assistant": yes, "others": no | {"not_learned": 3}}
