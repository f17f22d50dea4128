"""C4, FineWeb and RefinedWeb: each rule at its edge, the order of the rules, and what peers get wrong."""

from __future__ import annotations

import time
import unicodedata

import pytest

from recipe_plugins.filters.marks import TERMINALS
from recipe_plugins.filters.rules.c4 import count_sentences
from recipe_runner import Record, batched
from recipe_runner.testing import check_filter
from recipe_runner.testing.local import slot


def verdict(use: str, text: str, **config):
    return batched(slot("filter", {"use": use, **config}).build()).judge([Record("a", text)])[0]


def c4(text: str, **config):
    return verdict("c4", text, **{"min_sentences": 1, **config})


def left(use: str, text: str, **config) -> str:
    found = verdict(use, text, **config)
    assert found.keep, found
    return text if found.text is None else found.text


FIVE = "One two three four five."

# ── c4 ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("line", "config", "counted"),
    [
        ("one two three four five.", {}, ""),
        ("one two three four.", {}, "few_words"),
        ("one two three.", {"preset": "datatrove"}, ""),
        ("one two.", {"preset": "datatrove"}, "few_words"),
        ("one two three four five", {}, "no_end_mark"),
        ("one two three four five...", {}, "no_end_mark"),
        ("one two three four five", {"need_end_mark": False}, ""),
        ("one two three four 'five'", {}, "no_end_mark"),
        ("one two three four 'five'", {"preset": "datatrove"}, ""),
        ("one two three four " + "x" * 999 + ".", {}, ""),
        ("one two three four " + "x" * 1000 + ".", {}, "long_word"),
        ("Please enable JavaScript in your browser.", {}, "javascript"),
        ("Read our Privacy Policy before you go on.", {}, "policy"),
        ("Read our Privacy Policy before you go on.", {"drop_policy": False}, ""),
    ],
)
def test_each_line_rule_of_c4(line, config, counted):
    found = c4(f"{FIVE}\n{line}", **{**config, "min_sentences": 1})
    assert {name: n for name, n in found.scores.items() if n and name.endswith("_lines")} == (
        {f"{counted}_lines": 1} if counted else {}
    )
    assert found.text == (FIVE if counted else None)


def test_citations_go_before_words_and_ends_are_looked_at():
    assert left("c4", "One two three four five.[12]", min_sentences=1) == FIVE
    assert c4("One two three four. [citation needed]").reason == "few_sentences"
    assert c4("One two three four [1] .", min_words=6).scores["few_words_lines"] == 1
    assert c4("One two three four [1] .", min_words=6, count_citations=True).scores["few_words_lines"] == 0
    assert left("c4", f"  {FIVE}  \r\n\n{FIVE}", min_sentences=1) == f"{FIVE}\n{FIVE}"


@pytest.mark.parametrize(("preset", "sentences"), [("paper", 3), ("datatrove", 5)])
def test_sentences_of_a_page(preset, sentences):
    assert verdict("c4", f"{FIVE} " * sentences, preset=preset).keep
    assert verdict("c4", f"{FIVE} " * (sentences - 1), preset=preset).reason == "few_sentences"
    assert verdict("c4", "", preset=preset).reason == "few_sentences"


def test_a_bracket_in_a_short_line_ends_a_page_but_not_for_datatrove():
    for mark, reason in (("{", "curly_bracket"), ("Lorem Ipsum", "lorem_ipsum")):
        assert c4(f"{FIVE}\n{mark}").reason == reason
        assert c4(f"{FIVE}\n{mark}", preset="datatrove").keep
        assert c4(f"{FIVE}\nsee the {mark} in here.", preset="datatrove").reason == reason
    assert c4(f"{FIVE}\n{{", curly_bracket=False).keep
    assert c4("No javascript, but { is in here.", preset="datatrove").reason == "few_sentences"


@pytest.mark.parametrize(
    ("line", "count"),
    [
        ("", 0),
        ("One", 1),
        ("One. Two", 2),
        ("One! Two?", 2),
        ('He said "no." He left.', 2),
        ("3.14 is pi.", 1),
        ("Well... no", 2),
        ("Well...no", 1),
        ("?! What", 1),
        (".. a.b ?!) c", 2),
    ],
)
def test_sentences(line, count):
    assert count_sentences(line) == count


def test_the_paragraphs_of_mc4():
    long, short = "x" * 200, "x" * 199
    assert verdict("c4-paragraphs", "\n".join([long] * 3 + ["y"])).keep
    assert verdict("c4-paragraphs", "\n".join([long] * 2 + [short])).reason == "few_long_lines"


# ── fineweb ──────────────────────────────────────────────────────────────────────────────────────────────────────

LONG = "this line of text has thirty-one characters"


@pytest.mark.parametrize(
    ("text", "config", "reason"),
    [
        (" \n\t\n", {}, "empty"),
        ("\n".join(f"{i} {LONG}{'.' if i < 3 else ''}" for i in range(25)), {}, ""),             # 3 of 25 are 0.12
        ("\n".join(f"{i} {LONG}{'.' if i < 3 else ''}" for i in range(26)), {}, "few_line_ends"),
        ("\n".join(f"{i} {LONG}。" for i in range(25)), {}, ""),
        ("x" * 29 + ".", {}, "short_lines"),
        ("x" * 30 + ".", {}, ""),
        ("\n".join([f"{i:02d} no more than five." for i in range(67)] + [f"{i} {LONG}." for i in range(33)]), {}, ""),
        ("\n".join([f"{i:02d} no more than five." for i in range(68)] + [f"{i} {LONG}." for i in range(32)]), {},
         "short_lines"),
        ("\n".join(["x" * 39 + "."] * 2 + ["y" * 3919 + "."]), {"max_breaks": 1}, ""),   # 40 of 4000
        ("\n".join(["x" * 39 + "."] * 2 + ["y" * 3918 + "."]), {"max_breaks": 1}, "duplicate_characters"),
        ("\n".join(f"{i}xxxxxxxxxxxxxxxxxxxxxxxxxxxxx two three." for i in range(10)), {}, ""),
        ("\n".join(f"{i}xxxxxxxxxxxxxxxxxxxxxxxxxxxxx two three." for i in range(10)) + "\n\n", {}, "list"),
    ],
)  # fmt: skip
def test_each_rule_of_fineweb_keeps_its_bound(text, config, reason):
    assert verdict("fineweb-quality", text, **config).reason == reason


def test_a_space_behind_a_full_stop_hides_it_from_datatrove_only():
    text = "\n".join(f"{i} {LONG}. " for i in range(5))
    assert verdict("fineweb-quality", text).keep
    assert verdict("fineweb-quality", text, preset="datatrove").reason == "few_line_ends"


def test_sentences_end_as_unicode_says():
    regex = pytest.importorskip("regex")
    khmer = {chr(code) for code in (0x17D6, 0x17D9, 0x17DA)}
    assigned = {mark for mark in TERMINALS if unicodedata.category(mark) != "Cn"} - khmer
    assert all(regex.fullmatch(r"\p{Sentence_Terminal}", mark) for mark in assigned)
    assert {*".!?。？！…"} - set(TERMINALS) == {"…"}


# ── refinedweb ───────────────────────────────────────────────────────────────────────────────────────────────────

BODY = "\n".join(f"Line {i} of a text that goes on and on, so that little of it is rubbish." for i in range(10))


@pytest.mark.parametrize(
    "line",
    ["HOME ABOUT US", "12 34 56", "3 likes", "(1.2K Views)", "Menu", "Sign-in", "AB cd EFG", "2 items in cart"],
)
def test_rubbish_goes_from_around_a_text(line):
    assert left("refinedweb-lines", f"{BODY}\n{line}") == BODY


@pytest.mark.parametrize("line", ["AB cd", "3 likes to be had", "12 34 x", "two words", "They read more than this"])
def test_what_is_near_rubbish_stays(line):
    assert left("refinedweb-lines", f"{BODY}\n{line}") == f"{BODY}\n{line}"


def test_phrases_go_from_short_lines_only():
    ten = "one two three four five six seven eight Read more..."
    assert left("refinedweb-lines", f"{BODY}\n{ten}") == f"{BODY}\n{ten[:-13]}"
    assert left("refinedweb-lines", f"{BODY}\nzero {ten}") == f"{BODY}\nzero {ten}"


def test_too_much_rubbish_takes_the_document_with_it():
    words = "word " * 95
    menus = "\n".join(["Menu"] * 5)
    assert left("refinedweb-lines", f"{words}\n{menus}") == words  # 5 of 100
    assert verdict("refinedweb-lines", f"{words}\n{menus}\nMenu").reason == "mostly_rubbish"
    assert verdict("refinedweb-lines", "Menu", max_removed=1).reason == "no_text"
    assert left("refinedweb-lines", "a b\n\n\n\nc d") == "a b\n\nc d"


@pytest.mark.parametrize("use", ["c4", "c4-paragraphs", "fineweb-quality", "refinedweb-lines"])
def test_a_verdict_hangs_on_the_record_alone(use):
    texts = ["", BODY, f"{BODY}\nMenu", FIVE * 3, "{", "\x00\n\u2028"]
    records = [Record(str(number), text) for number, text in enumerate(texts)]
    check_filter(slot("filter", use).build(), records)
    check_filter(slot("filter", use).build(), [Record("m", messages=[{"role": "user", "content": "{"}])])


@pytest.mark.parametrize("text", ["." * 50_000, "1 " + " " * 50_000 + "x", "1" * 50_000, '."' * 25_000, "[" * 50_000])
@pytest.mark.parametrize("use", ["c4", "refinedweb-lines", "fineweb-quality", "gopher-repetition", "pii"])
def test_no_text_takes_time_that_grows_faster_than_itself(use, text):
    found = batched(slot("filter", {"use": use, **({"max_word": 10**6} if use == "c4" else {})}).build())
    start = time.process_time()
    found.judge([Record("a", text + " one two three four five.")])
    assert time.process_time() - start < 1  # what is quadratic takes ten times as long
