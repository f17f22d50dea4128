"""Filters: each rule by itself; copies found as the mathematics says, in whatever order they come."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from recipe_plugins.filters.copies import components
from recipe_plugins.filters.marks import COMBINING
from recipe_plugins.filters.text import plain
from recipe_runner import Record, batched
from recipe_runner.testing import check_filter
from recipe_runner.testing.local import slot


def build(use: str, **config):
    return batched(slot("filter", {"use": use, **config}).build())


def reason(text: str, **config) -> str:
    verdict = build("gopher-quality", **config).judge([Record("a", text)])[0]
    assert verdict.keep == (verdict.reason == "")
    return verdict.reason


GOOD = "The quick brown fox of the north jumps over that lazy dog and runs " * 8


# ── gopher ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (GOOD, ""),
        ("", "too_short"),
        ("the of word " * 16 + "-- ... !! ?? ;;", "too_short"),          # 48 words; marks are none
        ("the of word " * 16 + "and that", ""),                          # 50
        ("the of " * 50_001, "too_long"),
        ("a b the of " * 20, "short_words"),
        ("antidisestablishmentarianism the of " * 30, "long_words"),
        (GOOD + "# " * 20, "hashes"),
        (GOOD + "... … " * 10, "ellipses"),
        ("\n".join(["- " + GOOD] * 10), "bullets"),
        ("\n".join(["  • " + GOOD] * 9 + [GOOD]), ""),                     # nine in ten is not more than nine in ten
        ("\n".join([GOOD + "...  "] * 4 + [GOOD] * 6), "ellipsis_lines"),
        (GOOD + "1234 " * 30, "few_letters"),
        ("quick brown foxes jumping over lazy dogs the The THE " * 8, "few_stop_words"),
        ("quick brown foxes jumping over lazy dogs the And " * 8, ""),
    ],
)  # fmt: skip
def test_each_rule_of_gopher(text, expected):
    assert reason(text) == expected


def test_what_a_word_is_decides():
    code = "while the (of) and (that or [have]): return(be, with); " * 12
    assert reason(code, words="whitespace") == ""
    assert reason(code, words="unicode") == "few_letters"  # each run of marks is a word of its own


def test_a_threshold_moves_the_line():
    assert reason("the of " + "word " * 10, min_words=12) == ""
    assert reason("the of " + "word " * 10, min_words=13) == "too_short"


def test_all_statistics_are_scores_and_a_conversation_is_its_turns():
    quality = build("gopher-quality")
    talk = [{"role": "user", "content": GOOD}, {"role": "assistant", "content": "# 1"}]
    verdict = quality.judge([Record("a", messages=talk)])[0]
    assert verdict.scores == quality.judge([Record("b", GOOD + "\n\n# 1")])[0].scores
    assert verdict.scores["words"] == 113
    assert verdict.scores["hashes"] == round(1 / 114, 6)


def test_a_full_vocabulary_changes_no_verdict(monkeypatch):
    monkeypatch.setattr("recipe_plugins.filters.words.Words.VOCABULARY", 10)
    records = [Record(str(n), GOOD + f" word{n}" * n) for n in range(200)]
    small, large = build("gopher-quality"), build("gopher-quality")
    verdicts = small.judge(records)
    monkeypatch.undo()
    assert verdicts == large.judge(records)
    check_filter(large, records[:20])


# ── copies ───────────────────────────────────────────────────────────────────────────────────────────────────────


def decide(found, batches: list[list[Record]], folder: Path) -> dict[str, tuple[bool, str, dict]]:
    """What a global filter says of each record, by id."""
    folder.mkdir(exist_ok=True)
    state = found.decide((found.sketch(batch) for batch in batches), folder)
    verdicts = [(r.id, v) for batch in batches for r, v in zip(batch, found.judge(batch, state), strict=True)]
    return {name: (v.keep, v.reason, dict(v.scores)) for name, v in verdicts}


@pytest.mark.parametrize(
    ("compare", "equal"),
    [
        ("text", {"a", "b"}),
        ("spaces", {"a", "b", "spaced", "decomposed"}),
        ("letters", {"a", "b", "spaced", "loud"}),
    ],
)
def test_equal_means_what_the_config_says(tmp_path, compare, equal):
    texts = {"a": "Über uns. Wir.", "b": "Über uns. Wir.", "spaced": " Über\n uns.\tWir.",
             "decomposed": "U\u0308ber uns. Wir.", "loud": "ÜBER UNS -- WIR!", "other": "Über sie."}  # fmt: skip
    verdicts = decide(build("exact-dedup", compare=compare), [[Record(*item) for item in texts.items()]], tmp_path)
    assert {name for name, (keep, *_) in verdicts.items() if not keep} == equal - {"a"}
    assert verdicts["a"] == (True, "", {"copies": len(equal)})
    assert verdicts["b"] == (False, "duplicate", {"copies": len(equal)})


def words(rng: random.Random, count: int) -> list[str]:
    return [f"w{rng.randrange(100_000)}" for _ in range(count)]


def changed(rng: random.Random, text: list[str], share: float) -> list[str]:
    return [word if rng.random() > share else f"x{rng.randrange(10**9)}" for word in text]


def jaccard(a: list[str], b: list[str], n: int = 5) -> float:
    left, right = ({tuple(text[i : i + n]) for i in range(len(text) - n + 1)} for text in (a, b))
    return len(left & right) / len(left | right)


@pytest.mark.parametrize("use", ["exact-dedup", "minhash-dedup"])
def test_order_and_batches_decide_nothing(tmp_path, use):
    rng = random.Random(0)
    texts = [words(rng, 60) for _ in range(40)]
    records = [Record(f"{name}{n}", " ".join(changed(rng, text, 0.002)), priority=rng.randrange(3))
               for n, text in enumerate(texts) for name in "abcd"]  # fmt: skip
    found = build(use)
    straight = decide(found, [records], tmp_path / "straight")
    for trial in range(3):
        mixed = rng.sample(records, len(records))
        batches = [mixed[at : at + 7] for at in range(0, len(mixed), 7)]
        assert decide(found, batches, tmp_path / str(trial)) == straight
    kept = {name for name, (keep, *_) in straight.items() if keep}
    assert 40 <= len(kept) < 160
    lowest = {n: min((r.priority, r.id) for r in records if r.id[1:] == str(n))[1] for n in range(40)}
    assert set(lowest.values()) <= kept


def test_copies_of_copies_are_one_cluster(tmp_path):
    text = words(random.Random(1), 200)
    chain = [text[at : at + 170] for at in range(0, 30, 6)]  # neighbours are alike, the ends are not
    assert jaccard(chain[0], chain[1]) > 0.9
    assert jaccard(chain[0], chain[-1]) < 0.8
    records = [Record(str(n), " ".join(part)) for n, part in enumerate(chain)]
    verdicts = decide(build("minhash-dedup", threshold=0.85), [records], tmp_path)
    assert [keep for keep, *_ in verdicts.values()] == [True] + [False] * 4
    assert verdicts["0"][2] == {"copies": 5}


@pytest.fixture(scope="module")
def pairs() -> list[tuple[float, Record, Record]]:
    """Pairs of texts of 150 words with the Jaccard index of their 5-grams, from 0.3 to 1."""
    rng = random.Random(2)
    found = []
    for n in range(2400):
        text = words(rng, 150)
        other = changed(rng, text, rng.choice([0.01, 0.02, 0.03, 0.04, 0.05, 0.07, 0.09]))
        found.append((jaccard(text, other), Record(f"a{n}", " ".join(text)), Record(f"b{n}", " ".join(other))))
    return found


def recall(pairs, folder: Path, low: float, high: float, **config) -> tuple[float, float]:
    """The share of pairs of a range of similarities that are found, and the share that banding promises."""
    mine = [pair for pair in pairs if low <= pair[0] < high]
    assert len(mine) > 150
    verdicts = decide(build("minhash-dedup", **config), [[r for _, a, b in mine for r in (a, b)]], folder)
    hit = sum(not verdicts[b.id][0] for _, _, b in mine)
    return hit / len(mine), float(np.mean([1 - (1 - s**8) ** 14 for s, *_ in mine]))


@pytest.mark.parametrize(("low", "high"), [(0.4, 0.6), (0.6, 0.7), (0.7, 0.8), (0.8, 0.9), (0.9, 1.01)])
def test_without_a_threshold_pairs_are_found_as_banding_promises(pairs, tmp_path, low, high):
    found, promised = recall(pairs, tmp_path, low, high, threshold=0)
    assert abs(found - promised) < 0.06  # two standard deviations of a share of 200 and more


def test_a_threshold_takes_away_what_is_not_alike(pairs, tmp_path):
    for verify in (True, False):
        assert recall(pairs, tmp_path, 0.4, 0.6, threshold=0.75, verify=verify)[0] == 0
        assert recall(pairs, tmp_path, 0.9, 1.01, threshold=0.75, verify=verify)[0] == 1


def test_verified_pairs_are_those_whose_sets_are_alike(pairs, tmp_path):
    """The estimate errs on both sides of a threshold; the sets do not, whatever the batches."""
    near = [pair for pair in pairs if 0.6 <= pair[0] < 0.9][:400]
    records = [record for _, a, b in near for record in (a, b)]
    batches = [records[at : at + 99] for at in range(0, len(records), 99)]
    every = decide(build("minhash-dedup", threshold=0), batches, tmp_path / "every")
    verified = decide(build("minhash-dedup", threshold=0.75), batches, tmp_path / "verified")
    guessed = decide(build("minhash-dedup", threshold=0.75, verify=False), batches, tmp_path / "guessed")
    right = {b.id: not every[b.id][0] and s >= 0.75 for s, _, b in near}
    assert {name: not verified[name][0] for name in right} == right
    assert sum((not guessed[name][0]) != right[name] for name in right) > 10


def test_with_a_threshold_of_nothing_nothing_is_kept_to_verify(pairs):
    batch = [record for _, *both in pairs[:9] for record in both]
    assert len(build("minhash-dedup", threshold=0).sketch(batch)) < len(batch) * 1_000
    assert len(build("minhash-dedup").sketch(batch)) > len(batch) * 4 * 140


@pytest.mark.parametrize(("low", "high"), [(0.7, 0.8), (0.8, 0.9), (0.9, 1.01)])
def test_the_default_finds_pairs_as_banding_promises_and_merges_no_others(pairs, tmp_path, low, high):
    found, promised = recall(pairs, tmp_path, low, high)
    assert abs(found - promised) < 0.06
    assert recall(pairs, tmp_path, 0.4, 0.7)[0] == 0


def test_signatures_estimate_the_jaccard_index(pairs):
    found = build("minhash-dedup")
    left, right = (found.signatures([plain(pair[side].text).encode() for pair in pairs[:400]]) for side in (1, 2))
    error = (left == right).mean(1) - np.array([pair[0] for pair in pairs[:400]])
    assert abs(error.mean()) < 0.006
    assert error.std() < 0.05  # sqrt(s (1 - s) / 112) is at most 0.047


def test_hashes_of_shingles_are_those_of_the_words_wherever_they_stand():
    from recipe_plugins.filters.shingles import Shingles

    shingles = Shingles(3)
    hashes, starts = shingles.of([b"  a b   c d ", b"x", b" y  z", b"b c d", b"bc d e "])
    assert starts.tolist() == [0, 2, 3, 4, 5]
    assert len(hashes) == 6
    assert hashes[1] == hashes[4]
    assert len(set(hashes.tolist())) == 5
    assert shingles.of([b"b c d"])[0][0] == hashes[1]


def test_short_empty_and_wordless_texts_are_copies_only_of_their_like(tmp_path):
    texts = {"a": "one two", "b": "One, two!", "c": "two one", "d": "", "e": " \n", "f": "!!", "g": "??", "h": "! !"}
    verdicts = decide(build("minhash-dedup"), [[Record(*item) for item in texts.items()]], tmp_path)
    assert {name for name, (keep, *_) in verdicts.items() if not keep} == {"b", "e", "h"}


def test_a_long_text_is_hashed_in_parts(tmp_path, monkeypatch):
    text = " ".join(words(random.Random(3), 3000))
    whole = build("minhash-dedup", verify=False).sketch([Record("a", text)])
    monkeypatch.setattr("recipe_plugins.filters.minhash.PART", 2_000)
    parts = build("minhash-dedup", verify=False).sketch([Record("a", text)])
    left, right = (np.frombuffer(sketch[-448:], "<u4") for sketch in (whole, parts))
    assert 0.9 < (left == right).mean() <= 1
    verdicts = decide(build("minhash-dedup"), [[Record("a", text), Record("b", text + " more")]], tmp_path)
    assert [keep for keep, *_ in verdicts.values()] == [True, False]


def test_nothing_at_all_is_decided_too(tmp_path):
    for use in ("exact-dedup", "minhash-dedup"):
        assert decide(build(use), [], tmp_path) == {}


def test_components_are_those_of_a_search():
    rng = random.Random(4)
    for _ in range(50):
        count = rng.randrange(1, 40)
        edges = [(rng.randrange(count), rng.randrange(count)) for _ in range(rng.randrange(count))]
        left, right = np.array(edges, np.int64).reshape(-1, 2).T
        home = list(range(count))
        for _ in range(count):
            for a, b in edges:
                home[a] = home[b] = min(home[a], home[b])
        assert components(count, left, right).tolist() == home


@pytest.mark.parametrize("text", [
    "Hello,  World_2! x", "Ünïcode—dash “quoted” 3½", "", "...", "日本語 テキスト",
    "İstanbul ΣΟΦΟΣ \u212a \x85a\u2003b\x1c",
    "".join(f"a{chr(code)}" for code in range(0x2000, 0x2C00)), "cafe\u0301 हिन्दी भाषा ที่ ❤\ufe0f",
])  # fmt: skip
def test_plain_text_is_lower_case_words(text):
    import re

    combining = "".join(COMBINING)
    assert plain(text) == " ".join(re.findall(rf"(?:[^\W_]|[{combining}])+", text.lower()))


def test_words_that_differ_in_vowel_signs_are_no_copies(tmp_path):
    """Without its signs `की` is `के`: two sentences of Hindi were one."""
    records = [Record("a", "राम की गाय"), Record("b", "राम के गाय"), Record("c", "राम  की, गाय")]
    for found in (build("exact-dedup", compare="letters"), build("minhash-dedup")):
        verdicts = decide(found, [records], tmp_path / type(found).__name__)
        assert {name for name, (keep, *_) in verdicts.items() if not keep} == {"c"}
