"""The stages `tokeniser` and `pretrained-tokeniser`, and their algorithms: components of kind `algorithm`."""

from __future__ import annotations

from recipe_runner import Component


def _algorithm(name: str, target: str, summary: str, module: str = "characters") -> Component:
    home = "recipe_plugins.tokeniser"
    config = f"{home}.config:{target}Config"
    return Component(kind="algorithm", name=name, target=f"{home}.{module}:{target}", config=config, summary=summary)


COMPONENTS: list[Component] = [
    Component(
        kind="stage",
        name="tokeniser",
        target="recipe_plugins.tokeniser.stage:TokeniserStage",
        config="recipe_plugins.tokeniser.config:TokeniserConfig",
        summary="trains a tokeniser on a corpus, and gives it a chat template",
    ),
    Component(
        kind="stage",
        name="pretrained-tokeniser",
        target="recipe_plugins.tokeniser.stage:PretrainedTokeniserStage",
        config="recipe_plugins.tokeniser.config:PretrainedTokeniserConfig",
        summary="somebody's tokeniser, with more tokens and a chat template of one's choice",
    ),
    Component(
        kind="kind",
        name="algorithm",
        target="recipe_plugins.tokeniser.config:Algorithm",
        summary="how a vocabulary is made from text",
    ),
    _algorithm("byte-bpe", "ByteBPE", "byte-pair encoding over bytes: no text is unknown", "algorithms"),
    _algorithm("bytes", "Bytes", "the 256 bytes: no text is unknown", "algorithms"),
    _algorithm("unigram", "Unigram", "the likeliest pieces, of bytes: none unknown (extra `sentencepiece`)", "unigram"),
    _algorithm("bpe", "BPE", "byte-pair encoding over characters"),
    _algorithm("wordpiece", "WordPiece", "pieces of words, longest first; white space is lost"),
    _algorithm("characters", "Characters", "one entry a character"),
]
