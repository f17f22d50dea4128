"""Formats: what a row becomes, and what it lacks."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from recipe_runner import BadRow, Record
from recipe_runner.testing.local import slot


def record(row: dict, use: str = "auto", **config):
    return slot("format", {"use": use, **config}).build().record(row)


def turns(*pairs) -> list[dict]:
    return [{"role": role, "content": content} for role, content in pairs]


QA = turns(("user", "Why?"), ("assistant", "Because."))


def test_auto_takes_rows_in_the_shape_of_a_record():
    assert record({"text": "a", "id": 7, "meta": {"url": "x"}, "other": 1}) == Record("7", "a", meta={"url": "x"})
    assert record({"messages": QA, "text": None, "group": 3}) == Record("", messages=QA, meta={"group": "3"})


@pytest.mark.parametrize(
    ("use", "row", "reason"),
    [
        ("auto", {"body": "a"}, "neither `text` nor `messages`; name a `format` and its `fields`"),
        ("auto", {"text": "a", "messages": QA}, "both `text` and `messages`; name a `format`"),
        ("auto", {"text": 5}, "field 'text' is not a string"),
        ("auto", {"text": "a", "id": 1.5}, "field 'id' is not a string or a whole number"),
        ("text", {"body": "a"}, "no field 'text'"),
        ("alpaca", {"instruction": "a"}, "no field 'output'"),
        ("alpaca", {"output": "a"}, "no field 'instruction'"),
        ("alpaca", {"instruction": "a", "input": 5, "output": "b"}, "field 'input' is not a string"),
        ("messages", {"conversations": QA}, "no field 'messages'"),
        ("messages", {"messages": "Why?"}, "field 'messages' is not a list of turns"),
        ("messages", {"messages": []}, "field 'messages' is not a list of turns"),
        ("messages", {"messages": ["Why?"]}, "a turn in 'messages' is not an object"),
        ("messages", {"messages": [{"role": "user"}]}, "no field 'content'"),
        ("messages", {"messages": [{"role": "user", "content": [{"image": 1}]}]}, "field 'content' is not a string"),
        ("messages", {"messages": turns(("me", "x"))}, "role 'me' in 'messages'; translate it with `roles`"),
    ],
)
def test_a_row_that_lacks_something_is_a_bad_row_that_names_it(use, row, reason):
    assert record(row, use) == BadRow("", reason)


def test_what_lacks_a_column_says_which_it_has():
    assert record({"body": "a", "n": 1}).detail == "it has 'body', 'n'"
    assert record({"body": "a"}, "text").detail == "it has 'body'"
    assert record({}, "text").detail == "it has no columns"
    assert record({"messages": [{"from": "user"}]}, "messages").detail == "it has 'from'"
    assert record({f"c{n}": 1 for n in range(50)}, "text").detail.endswith("'c11', …")
    assert record({"text": 5}).detail == ""


def test_text_takes_the_columns_it_is_told_of():
    row = {"content": "a", "url": "u", "lang": "en", "site": "s", "text": 5}
    found = record(row, "text", fields={"text": "content", "id": "url", "group": "site"}, keep=["lang"])
    assert found == Record("u", "a", meta={"lang": "en", "group": "s"})
    assert record({"content": "a"}, "text", fields={"text": "content"}, keep=["lang"]) == BadRow("", "no field 'lang'")
    with pytest.raises(ValidationError, match="body"):
        record(row, "text", fields={"body": "content"})


def test_alpaca_becomes_two_turns_with_the_input_below_the_instruction():
    row = {"instruction": "Add.", "input": "1 + 1", "output": "2"}
    assert record(row, "alpaca").messages == turns(("user", "Add.\n\n1 + 1"), ("assistant", "2"))
    for nothing in ({"input": ""}, {"input": None}, {"input": " \n"}):
        assert record({**row, **nothing}, "alpaca").messages == turns(("user", "Add."), ("assistant", "2"))
    named = {"question": "Add.", "output": "2"}
    assert record(named, "alpaca", fields={"instruction": "question"}).messages[0]["content"] == "Add."


def test_messages_translate_the_names_of_columns_and_roles():
    row = {"conversations": [{"from": "human", "value": "Why?"}, {"from": "Maschine", "value": "Because."}]}
    fields = {"messages": "conversations", "role": "from", "content": "value"}
    found = record(row, "messages", fields=fields, roles={"human": "user", "Maschine": "assistant"})
    assert found.messages == QA
    assert record({"messages": turns(("gpt", "x"))}, "messages").messages == turns(("assistant", "x"))


SHARED = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}]
SYSTEM = turns(("system", "Be brief."))


def test_sharegpt_translates_roles_and_keeps_the_system_prompt():
    assert record({"id": "a", "conversations": SHARED}, "sharegpt") == Record("a", messages=QA)
    said = {"conversations": [{"from": "system", "value": "Be brief."}, *SHARED]}
    assert record(said, "sharegpt").messages == SYSTEM + QA
    assert record({"conversations": SHARED, "system": "Be brief."}, "sharegpt").messages == SYSTEM + QA
    assert record({"conversations": SHARED, "system": ""}, "sharegpt").messages == QA
    named = {"items": [{"who": "human", "said": "Why?"}, {"who": "gpt", "said": "Because."}], "task": "Be brief."}
    fields = {"messages": "items", "role": "who", "content": "said", "system": "task"}
    assert record(named, "sharegpt", fields=fields).messages == SYSTEM + QA


def test_prompt_and_completion_are_strings_or_turns():
    for prompt in ("Why?", QA[:1]):
        for completion in ("Because.", QA[1:]):
            assert record({"prompt": prompt, "completion": completion}, "prompt-completion").messages == QA
    named = {"q": [{"by": "human", "text": "Why?"}], "a": "Because."}
    fields = {"prompt": "q", "completion": "a", "role": "by", "content": "text"}
    assert record(named, "prompt-completion", fields=fields).messages == QA


@pytest.mark.parametrize(
    ("use", "row", "reason"),
    [
        ("sharegpt", {"messages": SHARED}, "no field 'conversations'"),
        ("sharegpt", {"conversations": QA}, "no field 'from'"),
        ("sharegpt", {"conversations": [{"from": "human", "value": None}]}, "field 'value' is not a string"),
        ("sharegpt", {"conversations": SHARED, "system": 5}, "field 'system' is not a string"),
        (
            "sharegpt",
            {"conversations": [{"from": "system", "value": "a"}, *SHARED], "system": "b"},
            "a system prompt both in 'system' and in 'conversations'",
        ),
        (
            "sharegpt",
            {"conversations": [{"from": "function_call", "value": "{}"}]},
            "role 'function_call' in 'conversations'; translate it with `roles`",
        ),
        ("prompt-completion", {"prompt": "Why?"}, "no field 'completion'"),
        ("prompt-completion", {"completion": "Because."}, "no field 'prompt'"),
        ("prompt-completion", {"prompt": 5, "completion": "a"}, "field 'prompt' is not a list of turns"),
        ("prompt-completion", {"prompt": "a", "completion": []}, "field 'completion' is not a list of turns"),
        ("prompt-completion", {"prompt": "a", "completion": QA}, "field 'completion' begins with a turn of the user"),
    ],
)
def test_chats_that_lack_something_are_bad_rows_that_name_it(use, row, reason):
    assert record(row, use) == BadRow("", reason)


def test_a_turn_keeps_its_tools_its_thoughts_and_whether_it_is_learned():
    call = {"type": "function", "function": {"name": "find", "arguments": {"what": "it"}}}
    talk = [
        {"role": "user", "content": "Where?", "name": "Ann", "train": False},
        {"role": "assistant", "content": None, "tool_calls": [call], "train": 0},
        {"role": "tool", "content": "here", "tool_call_id": "1", "tool_calls": None},
        {"role": "assistant", "content": "Here.", "reasoning_content": "Found.", "train": True},
    ]
    tools = [{"type": "function", "function": {"name": "find"}}]
    for given in (tools, '[{"type": "function", "function": {"name": "find"}}]'):
        found = record({"messages": talk, "tools": given}, "messages")
        assert found.meta == {"tools": tools}
    assert found == record({"messages": talk, "tools": tools})
    assert found.messages == [
        {"role": "user", "content": "Where?", "name": "Ann"},
        {"role": "assistant", "content": "", "tool_calls": [call], "train": False},
        {"role": "tool", "content": "here", "tool_call_id": "1"},
        {"role": "assistant", "content": "Here.", "reasoning_content": "Found.", "train": True},
    ]
    named = [
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "So.", "thoughts": "Hm.", "weight": 0},
    ]
    fields = {"reasoning": "thoughts", "train": "weight", "tools": "functions"}
    found = record({"messages": named, "functions": tools}, "messages", fields=fields)
    assert found.messages[1] == {"role": "assistant", "content": "So.", "reasoning_content": "Hm.", "train": False}
    assert found.meta == {"tools": tools}


OTHER = turns(("assistant", "No idea."))
JUDGED = {"prompt": 1, "rejected": OTHER}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Why?", "chosen": "Because.", "rejected": "No idea."},
        {"prompt": QA[:1], "chosen": QA[1:], "rejected": OTHER},
        {"prompt": "Why?", "chosen": QA, "rejected": QA[:1] + OTHER},  # as UltraFeedback repeats it
        {"chosen": QA, "rejected": QA[:1] + OTHER},
        {"prompt": None, "chosen": QA, "rejected": QA[:1] + OTHER},
    ],
)
def test_a_preference_is_the_chosen_conversation_with_the_rejected_answer_beside_it(row):
    found = record(row, "preference")
    assert found.messages == QA
    assert found.meta["preference"] == JUDGED
    other = record({**row, "chosen": row["rejected"], "rejected": row["chosen"], "id": "b"}, "preference")
    assert other.messages == QA[:1] + OTHER
    assert other.meta["group"] == found.meta["group"], "rows of one prompt stand on one side of the split"
    assert record({**row, "group": "g"}, "preference").meta["group"] == "g"


def test_a_preference_after_several_turns_and_two_equal_answers():
    before = QA + turns(("user", "Sure?"))
    row = {"chosen": before + turns(("assistant", "Yes.")), "rejected": before + OTHER}
    assert record(row, "preference").meta["preference"] == {"prompt": 3, "rejected": OTHER}
    same = record({"chosen": QA, "rejected": QA}, "preference")
    assert same.meta["preference"] == {"prompt": 1, "rejected": QA[1:]}  # for the stage to count and leave out


def test_an_unpaired_preference_says_whether_the_answer_was_wanted():
    for label, wanted in ((True, True), (0, False)):
        found = record({"prompt": "Why?", "completion": "Because.", "label": label}, "unpaired-preference")
        assert found.messages == QA
        assert found.meta["preference"] == {"prompt": 1, "desirable": wanted}
    named = {"q": "Why?", "a": "Because.", "good": True}
    fields = {"prompt": "q", "completion": "a", "label": "good"}
    again = record(named, "unpaired-preference", fields=fields)
    assert (again.messages, again.meta["group"]) == (QA, found.meta["group"])


@pytest.mark.parametrize(
    ("use", "row", "reason"),
    [
        ("messages", {"messages": [{**QA[1], "train": "no"}]}, "field 'train' of a turn is not true or false"),
        (
            "messages",
            {"messages": [{**QA[0], "train": True}]},
            "field 'train' is true in a turn of the user; only the assistant's are learned",
        ),
        ("messages", {"messages": [{**QA[1], "tool_calls": "find"}]}, "field 'tool_calls' is not a list of objects"),
        ("messages", {"messages": QA, "tools": "find"}, "field 'tools' is not JSON"),
        ("messages", {"messages": QA, "tools": {"name": "find"}}, "field 'tools' is not a list of objects"),
        ("preference", {"prompt": "Why?", "chosen": "Because."}, "no field 'rejected'"),
        (
            "preference",
            {"prompt": "Why?", "chosen": "Because.", "rejected": None},
            "field 'rejected' is not a list of turns",
        ),
        ("preference", {"chosen": "Because.", "rejected": "So."}, "field 'chosen' is not a list of turns"),
        (
            "preference",
            {"chosen": QA, "rejected": turns(("user", "How?"), ("assistant", "So."))},
            "field 'chosen' is no answer to the prompt that both share; name the prompt's column",
        ),
        (
            "preference",
            {"prompt": "Why?", "chosen": QA[1:], "rejected": turns(("user", "How?"), ("assistant", "So."))},
            "field 'rejected' is no answer to the prompt that both share; name the prompt's column",
        ),
        ("unpaired-preference", {"prompt": "Why?", "completion": "So."}, "no field 'label'"),
        (
            "unpaired-preference",
            {"prompt": "Why?", "completion": "So.", "label": "good"},
            "field 'label' is not true or false",
        ),
    ],
)
def test_what_turns_and_preferences_lack_is_named(use, row, reason):
    assert record(row, use) == BadRow("", reason)
