"""Filters: each judges documents, alone or in the sight of all."""

from __future__ import annotations

from recipe_runner import Component


def _filter(name: str, target: str, config: str, summary: str, version: int = 1) -> Component:
    home = "recipe_plugins.filters"
    names = {"target": f"{home}.{target}", "config": f"{home}.config:{config}"}
    return Component(kind="filter", name=name, **names, version=version, summary=summary)


def _rule(name: str, target: str, config: str, summary: str, version: int = 1) -> Component:
    home = "recipe_plugins.filters.rules"
    names = {"target": f"{home}.{target}", "config": f"{home}.config:{config}"}
    return Component(kind="filter", name=name, **names, version=version, summary=summary)


def _learned(name: str, target: str, config: str, summary: str, version: int = 1) -> Component:
    home = "recipe_plugins.filters"
    names = {"target": f"{home}.{target}", "config": f"{home}.learned_config:{config}"}
    return Component(kind="filter", name=name, **names, version=version, summary=summary)


LEARNED = [
    _learned("quality-classifier", "classifier:QualityClassifier", "ClassifierConfig", "a score, trained or loaded", 2),
    _learned("toxicity-classifier", "classifier:ToxicityClassifier", "ClassifierConfig", "the same of the unwanted", 2),
    _learned(
        "decontaminate", "decontaminate:Decontaminate", "DecontaminateConfig", "what evaluation sets hold goes", 2
    ),
    _learned("line-dedup", "lines:LineDedup", "LineDedupConfig", "lines of several documents are taken out", 2),
    _learned("substring-dedup", "substring:SubstringDedup", "SubstringDedupConfig", "spans that came before are cut"),
]

COMPONENTS: list[Component] = [
    _filter(
        "gopher-quality", "gopher:GopherQuality", "GopherQualityConfig", "the ten quality rules of Gopher", version=2
    ),
    _rule(
        "gopher-repetition", "repetition:GopherRepetition", "GopherRepetitionConfig", "what repeats itself", version=3
    ),
    _rule("fineweb-quality", "fineweb:FinewebQuality", "FinewebQualityConfig", "the four rules of FineWeb", version=2),
    _rule("c4", "c4:C4", "C4Config", "the line and page rules of C4"),
    _rule("c4-paragraphs", "c4:C4Paragraphs", "C4ParagraphsConfig", "mC4: a few long lines"),
    _rule("refinedweb-lines", "refinedweb:RefinedwebLines", "RefinedwebLinesConfig", "menus, counters, buttons go"),
    _rule("language", "language:Language", "LanguageConfig", "what is in one of the languages"),
    _rule("length", "length:Length", "LengthConfig", "characters, words or bytes within bounds"),
    _rule("regex", "pattern:Regex", "RegexConfig", "documents with a pattern kept or dropped, or it replaced"),
    _rule("url", "url:Url", "UrlConfig", "documents by their address", version=2),
    _rule("pii", "pii:Pii", "PiiConfig", "e-mail, IP, phone and card numbers replaced", version=2),
    _rule("toxicity", "toxicity:Toxicity", "ToxicityConfig", "documents with words of a list", version=2),
    _rule("score", "score:score", "ScoreConfig", "documents by scores that were kept", version=2),
    _filter("exact-dedup", "exact:ExactDedup", "ExactDedupConfig", "equal texts: one survives", version=2),
    _filter(
        "minhash-dedup", "minhash:MinHashDedup", "MinHashDedupConfig", "nearly equal texts: one survives", version=3
    ),
    *LEARNED,
]
