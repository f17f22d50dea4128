"""Filters: each judges documents, alone or in the sight of all."""

from __future__ import annotations

from recipe_runner import Component


def _filter(name: str, target: str, config: str, summary: str) -> Component:
    home = "recipe_plugins.filters"
    return Component(
        kind="filter", name=name, target=f"{home}.{target}", config=f"{home}.config:{config}", summary=summary
    )


COMPONENTS: list[Component] = [
    _filter("gopher-quality", "gopher:GopherQuality", "GopherQualityConfig", "the ten quality rules of Gopher"),
    _filter("exact-dedup", "exact:ExactDedup", "ExactDedupConfig", "equal texts: one survives"),
    _filter("minhash-dedup", "minhash:MinHashDedup", "MinHashDedupConfig", "nearly equal texts: one survives"),
]
