"""Identity: what is in a key, and what is not."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
from pydantic import Field, create_model

from recipe_runner import Config, Execution
from recipe_runner.components import Component, Use, with_dist
from recipe_runner.identity import canonical, identity, key_of, make_seed, payload, use_identity


def key(use: Use, seed: int = 0, **digests: str) -> str:
    return key_of(payload(use, seed, digests, {}))


def test_components_that_share_every_field_differ(toy):
    plus, times = toy("toy-rule", "plus"), toy("toy-rule", "times")
    assert plus.config == times.config
    assert use_identity(plus) != use_identity(times)
    assert key(toy(rule="plus")) != key(toy(rule="times"))
    assert key(toy(rules={"x": "plus"})) != key(toy(rules={"x": "times"}))


def test_a_default_component_is_in_the_key_with_its_version(toy):
    stage = toy()
    assert identity(stage.config) == {"rule": {"use": "recipe-toy:plus@1"}}
    raised = Component(**{**_fields(stage.config.rule.component), "version": 2})
    newer = Use(stage.component, stage.config.model_copy(update={"rule": Use(raised, stage.config.rule.config)}))
    assert key(newer) != key(stage)


def test_the_distribution_and_the_stage_s_version_are_in_the_key(toy):
    stage = toy()
    assert key(Use(with_dist(stage.component, "other"), stage.config)) != key(stage)
    assert key(Use(Component(**{**_fields(stage.component), "version": 2}), stage.config)) != key(stage)


def _fields(component: Component) -> dict[str, Any]:
    return {name: getattr(component, name) for name in Component.__dataclass_fields__}


CHANGES = [
    {"steps": 11}, {"label": "x"}, {"ceiling": None}, {"ceiling": 2.0}, {"budget": 1001}, {"size": "7MB"},
    {"weights": {"b": 2.0, "a": 1.0}}, {"weights": {}}, {"betas": (0.95, 0.9)}, {"details": {"amount": 2}},
    {"more": {}}, {"more": {"amount": 2}}, {"rule": "times"}, {"rule": {"by": 3}}, {"rules": {"x": "plus"}},
    {"rules": {"y": "plus"}}, {"rules": {"x": {"use": "plus", "every": 2}}}, {"rules": {"x": "plus", "y": "times"}},
    {"rules": {"y": "times", "x": "plus"}},
]  # fmt: skip


def test_every_identity_field_changes_the_key_and_each_change_differently(toy):
    """Reordered mappings, null in place of a default, and {} in place of nothing are among the changes."""
    keys = [key(toy()), *(key(toy(**change)) for change in CHANGES)]
    assert len(set(keys)) == len(keys), [c for c, k in zip([{}, *CHANGES], keys, strict=True) if keys.count(k) > 1]


@pytest.mark.parametrize(
    "same",
    [
        {"steps": 10}, {"size": "6MB"}, {"size": 6_000_000}, {"budget": "1k"}, {"weights": {"a": 1, "b": 2}},
        {"betas": [0.9, 0.95]}, {"details": {}}, {"details": {"amount": 1}}, {"rule": "plus"}, {"rule": {"by": 2.0}},
        {"rules": {}}, {"ceiling": 1e6}, {"more": None}, {"cache": None}, {"notes": []},
    ],
    ids=str,
)  # fmt: skip
def test_a_default_that_is_written_out_changes_nothing(toy, same):
    assert key(toy(**same)) == key(toy())


@pytest.mark.parametrize(
    "execution",
    [
        {"execution": {"device": "cpu", "processes": 2, "threads": 3, "micro_batch": 4, "checkpoint_every": 5}},
        {"pause": 1.0}, {"hold_at": 3}, {"cache": "/anywhere"}, {"details": {"speed": 9}}, {"seed": 5},
        {"details": {"folder": "/anywhere"}},
    ],
    ids=str,
)  # fmt: skip
def test_execution_places_and_seeds_stay_out(toy, execution):
    """Also where the mark stands inside `… | None` or in a nested config; the seed enters as the effective one."""
    assert key(toy(**execution)) == key(toy())


def test_an_execution_field_of_a_nested_config_that_is_there_changes_nothing(toy):
    assert key(toy(more={"speed": 3})) == key(toy(more={}))


def test_a_new_field_with_a_default_changes_no_key():
    class Nested(Config):
        a: int = 1
        speed: Annotated[int, Execution()] = 1

    new = {
        "number": (int, 3), "size": (str | None, None), "nested": (Nested, Field(default_factory=dict)),
        "built": (Nested, Nested()), "pairs": (dict[str, float], {"a": 1}), "listed": (list[float], [1]),
        "ordered": (tuple[int, ...], [1, 2]),
    }  # fmt: skip
    old = create_model("Old", __base__=Config, kept=(int, 0))
    for name, field in new.items():
        newer = create_model("New", __base__=Config, kept=(int, 0), **{name: field})
        assert identity(newer(kept=1)) == identity(old(kept=1)) == {"kept": 1}, name


def test_the_content_of_a_file_is_in_the_key_and_its_path_is_not(toy, tmp_path):
    for name, text in {"one": "x", "two": "x", "three": "y"}.items():
        (tmp_path / name).write_text(text)
    one, two, three = (key(toy(use="toy-corpus", text=str(tmp_path / n))) for n in ("one", "two", "three"))
    assert one == two != three
    assert one != key(toy(use="toy-corpus"))
    one, two, three = (key(toy(notes=[str(tmp_path / n)])) for n in ("one", "two", "three"))
    assert one == two != three


def test_inputs_enter_by_digest_and_their_names_do_not(toy):
    assert key(toy(corpus="a"), corpus="d1") == key(toy(corpus="b"), corpus="d1") != key(toy(corpus="a"), corpus="d2")
    assert key(toy(models={"x": "a"})) != key(toy(models={"y": "a"})), "a label is the config's own"
    assert key(toy(models={"x": "a"})) == key(toy(models={"x": "b"}))


def test_the_effective_seed_is_in_the_key(toy):
    assert key(toy(), seed=1) != key(toy(), seed=2)


def test_seeds_differ_by_word_and_fit_63_bits():
    seeds = {make_seed(0), make_seed(1), make_seed(0, "a"), make_seed(0, "a", 1), make_seed(0, "a", "1")}
    assert len(seeds) == 5
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_what_is_no_json_has_no_text():
    for wrong in (float("nan"), float("inf"), {1, 2}, object()):
        with pytest.raises((ValueError, TypeError)):
            canonical(wrong)
