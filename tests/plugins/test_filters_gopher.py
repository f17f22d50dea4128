"""Gopher's rules: each threshold's edge, the three readings, and repetition against a straightforward reference."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest
from pydantic import ValidationError

from recipe_plugins.filters import splitting
from recipe_plugins.filters.rules.config import GopherRepetitionConfig
from recipe_plugins.filters.rules.repetition import GopherRepetition
from recipe_plugins.filters.splitting import UNICODE_WORD
from recipe_plugins.filters.words import Words
from recipe_runner import Record, batched
from recipe_runner.testing import check_filter
from recipe_runner.testing.local import slot


def verdict(use: str, text: str, **config):
    return batched(slot("filter", {"use": use, **config}).build()).judge([Record("a", text)])[0]


# ── quality ──────────────────────────────────────────────────────────────────────────────────────────────────────

OPEN = {"min_words": 0, "min_mean_word_length": 0, "min_letter_words": 0, "min_stop_words": 0}


@pytest.mark.parametrize(
    ("text", "config", "reason"),
    [
        ("aaa " * 50, {"min_words": 50}, ""),
        ("aaa " * 49, {"min_words": 50}, "too_short"),
        ("aaa " * 50, {"max_words": 50}, ""),
        ("aaa " * 51, {"max_words": 50}, "too_long"),
        ("aa aaaa", {"min_mean_word_length": 3}, ""),
        ("aa aaa", {"min_mean_word_length": 3}, "short_words"),
        ("a" * 10, {}, ""),
        ("a" * 10 + " " + "a" * 11, {}, "long_words"),
        ("# " + "aaa " * 9, {}, ""),
        ("# " + "aaa " * 8, {}, "hashes"),
        ("… " + "aaa " * 9, {}, ""),
        ("... " + "aaa " * 8, {}, "ellipses"),
        ("\n".join(["- aaa"] * 9 + ["aaa"]), {}, ""),
        ("\n".join(["- aaa"] * 10 + ["aaa"]), {}, "bullets"),
        ("\n".join(["aaa bbb ccc ddd..."] * 3 + ["aaa bbb ccc ddd eee fff"] * 7), {}, ""),
        ("\n".join(["aaa bbb ccc ddd..."] * 4 + ["aaa bbb ccc ddd eee fff"] * 7), {}, "ellipsis_lines"),
        ("aaa " * 4 + "111", {"min_letter_words": 0.8}, ""),
        ("aaa " * 3 + "111", {"min_letter_words": 0.8}, "few_letters"),
        ("the and", {"min_stop_words": 2}, ""),
        ("the the", {"min_stop_words": 2}, "few_stop_words"),
    ],
)
def test_the_bound_itself_is_kept(text, config, reason):
    assert verdict("gopher-quality", text, **{**OPEN, **config}).reason == reason


def test_a_share_is_compared_before_it_is_rounded():
    text = "# " * 200_001 + "aaa " * 1_800_005  # 0.1000002 of the words
    assert verdict("gopher-quality", text, **{**OPEN, "max_words": 10**8}).reason == "hashes"


def scores(text: str, preset: str, **config):
    return verdict("gopher-quality", text, preset=preset, **config).scores


def test_the_presets_read_the_paper_differently():
    text = "The the AND of\n* of... \n- x#y ## … end…"
    paper, datatrove, dolma = (scores(text, preset) for preset in ("paper", "datatrove", "dolma"))
    two, one = 0.666667, 0.333333
    read = (paper, datatrove, dolma)
    assert [each["stop_words"] for each in read] == [3, 2, 2]  # the, and, of; the, of; the, of
    assert [each["bullet_lines"] for each in read] == [two, one, two]
    assert [each["ellipsis_lines"] for each in read] == [two, two, one]
    assert paper["hashes"] == round(3 / 11, 6)
    assert datatrove["hashes"] == round(3 / len(UNICODE_WORD.findall(text)), 6)
    assert (dolma["hashes"], dolma["ellipses"], dolma["words"]) == (round(4 / 11, 6), 0, 11)
    assert [scores("a bb ccccccccc", preset)["mean_word_length"] for preset in ("paper", "dolma")] == [4, 2]


def test_datatrove_takes_other_characters_for_marks():
    assert scores("• → © — … 。", "datatrove")["words"] == 3
    assert scores("• → © — … 。", "paper")["words"] == 0
    assert scores("• → © — … 。", "dolma")["words"] == 6


def test_the_words_of_a_preset_are_its_own_unless_they_are_written():
    assert scores("a-b (c)", "datatrove")["words"] == 2
    assert scores("(the) (the)", "datatrove", words="whitespace")["stop_words"] == 0
    assert scores("(the) (the)", "datatrove")["stop_words"] == 1


# ── repetition ───────────────────────────────────────────────────────────────────────────────────────────────────


def reference(text: str, words: list[str], preset: str) -> dict[str, float]:
    """The table of definitions, read off without a thought for speed."""
    each = preset == "dolma"
    size = sum(map(len, words)) if each else len(text)
    found = {}
    splits = {"paragraph": (text.split("\n\n") if each else re.split(r"\n{2,}", text.strip())),
              "line": (text.split("\n") if each else re.split(r"\n+", text))}  # fmt: skip
    if preset == "paper":
        splits = {"paragraph": [part.strip() for part in re.split(r"\n\s*\n", text.strip())],
                  "line": list(filter(None, map(str.strip, text.split("\n"))))}  # fmt: skip
    for name, parts in splits.items():
        again = [p for i, p in enumerate(parts) if (parts.count(p) > 1 if each else p in parts[:i])]
        found[f"duplicate_{name}s"] = len(again) / len(parts) if parts else 0.0
        found[f"duplicate_{name}_characters"] = sum(map(len, again)) / size if size else 0.0
    for n in range(2, 11):
        grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        value = 0.0
        if grams and n < 5:
            gram, count = Counter(grams).most_common(1)[0]
            if count > 1 or preset != "paper":
                value = len(("" if each else " ").join(gram)) * count / size
        elif grams:
            value = of_repeated(grams, words, n, preset) / (sum(len("".join(g)) for g in grams) if each else size)
        found[f"top_{n}_gram" if n < 5 else f"duplicate_{n}_grams"] = value
    return {name: round(value, 6) for name, value in found.items()}


def of_repeated(grams: list[tuple[str, ...]], words: list[str], n: int, preset: str) -> int:
    counts = Counter(grams)
    if preset == "dolma":
        return sum(len("".join(gram)) for gram in grams if counts[gram] > 1)
    if preset == "paper":
        inside = {i + k for i, gram in enumerate(grams) if counts[gram] > 1 for k in range(n)}
        return sum(len(words[i]) for i in inside)
    seen, i, total = set(), 0, 0
    while i < len(grams):
        if grams[i] in seen:
            total += len("".join(grams[i]))
            i += n
        else:
            seen.add(grams[i])
            i += 1
    return total


ORDER = ("duplicate_paragraphs", "duplicate_paragraph_characters", "duplicate_lines", "duplicate_line_characters",
         *(f"top_{n}_gram" for n in (2, 3, 4)), *(f"duplicate_{n}_grams" for n in range(5, 11)))  # fmt: skip


def texts() -> list[str]:
    """From no repetition to nothing else; with short words, few words, marks, empty lines."""
    rng = random.Random(3)
    made = ["", "a", "\n\n", "one two three four five", "same line\n" * 9, "x y\n\nx y\n\n\nz", " \n a\n a \n"]
    for _ in range(250):
        stems = rng.choices(["a", "of", "word,", "(longer)", "über", "…"], k=rng.choice([2, 9, 400]))
        vocabulary = [f"{stem}{number}" for number, stem in enumerate(stems)]
        phrases = [" ".join(rng.choices(vocabulary, k=rng.randrange(1, 15))) for _ in range(rng.randrange(1, 30))]
        ends = rng.choice(["\n", " ", "\n\n", ". "])
        made.append(ends.join(rng.choices(phrases, k=rng.randrange(1, 40))) + rng.choice(["", "\n"]))
    return made


@pytest.mark.parametrize("preset", ["paper", "datatrove", "dolma"])
@pytest.mark.parametrize("words", ["whitespace", "unicode"])
def test_repetition_is_that_of_the_reference_in_decision_reason_and_scores(preset, words):
    config = GopherRepetitionConfig(preset=preset, words=words)
    found, seen = GopherRepetition(config), set()
    for text in texts():
        expected = reference(text, text.split() if words == "whitespace" else UNICODE_WORD.findall(text), preset)
        reason = next((name for name in ORDER if expected[name] > getattr(config, f"max_{name}")), "")
        judged = found.judge_one(Record("a", text))
        assert (judged.reason, judged.keep, judged.scores) == (reason, not reason, expected), text
        seen.add(reason)
    assert len(seen) >= 4


def test_five_words_are_no_repetition_but_for_datatrove():
    assert verdict("gopher-repetition", "one two three four five").keep
    assert verdict("gopher-repetition", "one two three four five", preset="datatrove").reason == "top_2_gram"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("\n\n".join(["a"] * 4 + list("bcdefgh")[:6]), ""),                                      # 3 of 10
        ("\n\n".join(["a"] * 5 + list("bcdefgh")[:6]), "duplicate_paragraphs"),
        ("\n".join(["a"] * 4 + ["b c d e f g h", "i", "j", "k", "l", "m"]), ""),
        ("\n".join(["a"] * 5 + ["b c d e f g h", "i", "j", "k", "l", "m"]), "duplicate_lines"),
    ],
)  # fmt: skip
def test_the_bound_of_a_repetition_is_kept(text, reason):
    assert verdict("gopher-repetition", text, max_top_2_gram=1, max_top_3_gram=1, max_top_4_gram=1).reason == reason


@pytest.mark.parametrize("between", ["\r\n\r\n", "\n \n", "\n\t\n\n \n"])
def test_blank_lines_repeat_nothing(between):
    lines = [" ".join(f"{word}{n}" for word in ("this", "line", "says", "its", "own")) for n in range(6)]
    bounds = {f"max_top_{n}_gram": 1 for n in (2, 3, 4)}
    assert verdict("gopher-repetition", between.join(lines), **bounds).reason == ""
    assert verdict("gopher-repetition", f"{between}{lines[0]}{between}", **bounds).reason == ""
    twice = verdict("gopher-repetition", between.join([*lines[:2]] * 2), **bounds)
    assert (twice.reason, twice.scores["duplicate_lines"]) == ("duplicate_paragraphs", 0.5)


def test_filters_of_one_memory_split_a_text_once(monkeypatch):
    calls = []
    memory: dict = {}
    found = [slot("filter", use).build() for use in ("gopher-repetition", "gopher-quality")]
    for each in found:
        each.share(memory)
    shared = found[0].words
    assert found[1].words is shared
    monkeypatch.setattr(shared, "_split", lambda text: calls.append(text) or text.split())
    text = "one of the many texts " * 30
    alone = [verdict(use, text) for use in ("gopher-repetition", "gopher-quality")]
    assert [each.judge_one(Record("a", text)) for each in found] == alone
    assert calls == [text]


def test_what_is_held_is_bounded_and_forgetting_changes_nothing(monkeypatch):
    monkeypatch.setattr(Words, "HELD", 1000)
    monkeypatch.setattr(Words, "VOCABULARY", 50)
    records = [Record(str(i), text) for i, text in enumerate(texts()[:60])]
    found = slot("filter", "gopher-repetition").build()
    check_filter(found, records)
    longest = max(len(record.text) for record in records)
    assert sum(map(len, found.words._held)) <= 1000 + longest


def test_numbers_of_a_forgotten_vocabulary_are_forgotten_with_it(monkeypatch):
    monkeypatch.setattr(Words, "VOCABULARY", 3)
    words = Words("whitespace")
    for text, lengths in (("aaaa bb c ddddd", [4, 2, 1, 5]), ("z yy", [1, 2]), ("aaaa bb c ddddd", [4, 2, 1, 5])):
        assert words.lengths(words.numbers(text)).tolist() == lengths


def test_an_unknown_statistic_is_an_error_at_load():
    with pytest.raises(ValidationError, match="max_top_2grams"):
        slot("filter", {"use": "gopher-repetition", "max_top_2grams": 0.2})


def test_combining_marks_part_no_word():
    """A decomposed text has the words of the composed one; Hindi and Thai were parted at every vowel sign."""
    said = "cafe\u0301's nai\u0308ve e\u0301-e\u0301 हिन्दी ที่ ❤\ufe0f \u0301a .\u0301"
    words = ["cafe\u0301's", "nai\u0308ve", "e\u0301-e\u0301", "हिन्दी", "ที่", "❤\ufe0f", "\u0301", "a", ".\u0301"]
    for text in (said, " ".join([said] * 20)):
        assert splitting.unicode_words(text) == words * (len(text) // len(said))


def test_words_split_by_kinds_are_those_of_the_pattern(monkeypatch):
    """Texts of any mixture, and each of 12,544 characters beside letters, joiners, marks and spaces."""
    monkeypatch.setattr(splitting, "LEAST", 1)
    rng = random.Random(5)
    drawn = "ab1_-'’  .!?\n\x1c\x0b\xa0\u2003é—“)\x00\x7f\x80ß²½\u0301\u093f\ufe0f"
    texts = ["".join(rng.choices(drawn, k=rng.choice([1, 2, 3, 40, 700]))) for _ in range(1_000)]
    texts += [f"a{character}b-{character}'a {character}{character}." for character in map(chr, range(0x3100))]
    for text in texts:
        words = UNICODE_WORD.findall(text)
        assert splitting.unicode_words(text) == words, repr(text)
        assert splitting.count_unicode_words(text) == len(words), repr(text)
