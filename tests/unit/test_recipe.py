"""From files to a recipe: where files are found, what layers and references do, and in which order stages run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from recipe_runner.errors import InvalidRecipe, UsageError
from recipe_runner.identity import identity
from recipe_runner.layers import find, shipped

BASE = """
schema: 1
name: base
vars: {n: 3, words: ./words.txt, block: {path: ./block.txt, folder: ., deeper: {path: deep.txt}}}
stages:
  data: {use: toy-corpus, text: "${vars.words}", beside: ./base-place}
  train: {use: toy-train, corpus: data, steps: "${vars.n}", rules: {one: plus, two: times}}
"""


@pytest.fixture
def files(bench, tmp_path: Path):
    """`files(name=text)`: recipes in a folder of their own each, `recipe.yaml` of the bench among them."""

    def write(**texts: str):
        for name, text in texts.items():
            folder = tmp_path / name
            folder.mkdir()
            (folder / "recipe.yaml").write_text(text)
            for path in ("words.txt", "block.txt", "deep.txt"):
                (folder / path).write_text(name)
            bench.recipe = folder / "recipe.yaml"
        return bench

    return write


def text_of(bench, *overrides: str) -> str:
    return Path(bench.load(*overrides).config("data").text).read_text()


# ── files ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_recipe_is_the_given_path_else_a_shipped_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find("tiny") == find("tiny.yaml") == find("recipes/tiny.yaml") == shipped() / "tiny.yaml"
    (tmp_path / "tiny.yaml").write_text("")
    assert find("tiny.yaml") == tmp_path / "tiny.yaml"
    assert find("other.yaml", beside=_touch(tmp_path / "deep" / "other.yaml").parent).parent.name == "deep"


def test_a_folder_that_is_written_is_meant(tmp_path, monkeypatch):
    """A mistyped folder must not run the shipped recipe of that name."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"no recipe 'min/tiny\.yaml'"):
        find("min/tiny.yaml")


def _touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")
    return path


def test_a_recipe_shared_by_two_parents_is_one_layer(files):
    """Else its second coming would undo what stands between: the change of `left` to what `base` wrote."""
    left = "schema: 1\nextends: ../base/recipe.yaml\nvars: {n: 7}\n"
    right = "schema: 1\nextends: ../base/recipe.yaml\nstages: {train: {label: right}}\n"
    child = "schema: 1\nname: child\nextends: [../left/recipe.yaml, ../right/recipe.yaml]\n"
    bench = files(base=BASE, left=left, right=right, child=child)
    train = bench.load().config("train")
    assert (train.steps, train.label) == (7, "right")


def test_a_child_wins_over_its_parents_and_overrides_over_all(files):
    bench = files(base=BASE, child="schema: 1\nextends: ../base/recipe.yaml\nname: child\nvars: {n: 4}\n")
    assert (bench.load().name, bench.load().config("train").steps) == ("child", 4)
    assert bench.load("vars.n=5").config("train").steps == 5
    assert bench.load("vars.n=5", "stages.train.steps=6").config("train").steps == 6


# ── references ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_reference_keeps_the_type_and_joins_into_text(bench):
    values = "{n: 3, f: 1e-5, b: true, list: [a, b], m: {by: 4}, deep: {x: '${vars.n}'}}"
    head = f"schema: 1\nname: t\nvars: {values}\nstages:\n"
    bench.write(
        """
  data: {use: toy-corpus, words: "${vars.list}"}
  train: {use: toy-train, steps: "${vars.deep.x}", rule: "${vars.m}", label: "${vars.n}-${vars.list.1}-${vars.b}",
          ceiling: "${vars.f}"}
  other: {use: toy-train, label: "${stages.train.label}", seed: "${ vars.n }"}
""",
        head,
    )
    recipe = bench.load("vars.n=8")
    assert recipe.config("data").words == ["a", "b"]
    train = recipe.config("train")
    assert (train.steps, train.rule.config.by, train.label, train.ceiling) == (8, 4.0, "8-b-True", 1e-5)
    assert (recipe.config("other").label, recipe.config("other").seed) == ("8-b-True", 8)


@pytest.mark.parametrize("extra", ["", "vars: {n: 4}\n"])
def test_a_path_is_relative_to_the_file_that_wrote_it_through_references(files, extra):
    """`${vars.words}` was written in `base`, wherever it is used; what the child writes is the child's."""
    bench = files(base=BASE, child=f"schema: 1\nname: c\nextends: ../base/recipe.yaml\n{extra}")
    assert text_of(bench) == "base"
    assert Path(bench.load().config("data").beside).parent.name == "base"


@pytest.mark.parametrize(
    ("child", "wrote"),
    [
        ("vars: {words: words.txt}", "child"),
        ("stages: {data: {text: words.txt}}", "child"),
        ('stages: {data: {text: "${vars.block.path}"}}', "base"),
        ("stages: {data: '${vars.whole}'}\nvars: {whole: {use: toy-corpus, text: words.txt}}", "child"),
        ('stages: {data: {text: "${vars.folder}/words.txt"}}\nvars: {folder: .}', "child"),
        ('stages: {data: {text: "${vars.block.folder}/words.txt"}}', "base"),
        ('stages: {data: {text: "${vars.block.deeper.path}"}}\nvars: {block: {deeper: {path: words.txt}}}', "child"),
    ],
)
def test_what_wrote_a_path(files, child, wrote):
    bench = files(base=BASE, child=f"schema: 1\nname: c\nextends: ../base/recipe.yaml\n{child}\n")
    assert text_of(bench) == wrote


def test_a_path_in_a_block_that_a_reference_brings_belongs_to_the_block_s_file(files):
    base = BASE.replace("vars: {", "vars: {whole: {use: toy-corpus, text: words.txt}, ")
    child = 'schema: 1\nname: c\nextends: ../base/recipe.yaml\nstages: {data: "${vars.whole}"}\n'
    bench = files(base=base, child=child)
    assert text_of(bench) == "base"


def test_a_path_on_the_command_line_is_relative_to_the_working_directory(files, tmp_path, monkeypatch):
    bench = files(base=BASE)
    (tmp_path / "words.txt").write_text("here")
    monkeypatch.chdir(tmp_path)
    assert text_of(bench, "vars.words=words.txt") == "here"
    assert text_of(bench, "stages.data.text=./words.txt") == "here"
    assert os.getcwd() == str(tmp_path)


def test_the_environment_reaches_execution_fields(bench, monkeypatch):
    monkeypatch.setenv("RECIPE_TEST_THREADS", "3")
    head = "schema: 1\nname: t\nexecution: {threads: '${env:RECIPE_TEST_THREADS}'}\nstages:\n"
    recipe = bench.write("  a: {use: toy-train, execution: {workers: '${ env:RECIPE_TEST_THREADS }'}}\n", head).load()
    assert (recipe.config("a").execution.threads, recipe.config("a").execution.workers) == (3, 3)


# ── what the schema has ──────────────────────────────────────────────────────────────────────────────────────────


def test_an_override_reaches_every_field_of_the_schema_whether_or_not_a_file_wrote_it(bench):
    bench.write("  data: toy-corpus\n  train: {use: toy-train}\n")
    recipe = bench.load(
        "stages.data.repeat=2", "stages.train.details.amount=3", "stages.train.rule.by=4", "stages.train.more.amount=5",
        "stages.train.rules.new.use=times", "stages.train.execution.launcher=local", "execution.device=cpu", "seed=9",
    )  # fmt: skip
    train = recipe.config("train")
    assert (recipe.config("data").repeat, train.details.amount, train.more.amount) == (2, 3, 5)
    assert (train.rule.config.by, train.rules["new"].component.name, train.execution.device) == (4, "times", "cpu")
    assert recipe.seed_of("train") == 9


def test_null_removes_what_was_inherited(files):
    child = (
        "schema: 1\nname: c\nextends: ../base/recipe.yaml\nstages: {train: {rules: {one: null}}, extra: toy-corpus}\n"
    )
    bench = files(base=BASE, child=child)
    assert list(bench.load().config("train").rules) == ["two"]
    assert list(bench.load("stages.train=null").stages) == ["data", "extra"]
    with pytest.raises(InvalidRecipe, match="there is no inherited 'tran' to remove"):
        bench.load("stages.tran=null")
    with pytest.raises(InvalidRecipe, match="there is no stage 'data'"):
        bench.load("stages.data=null")


def test_a_removed_entry_comes_back_last(files):
    bench = files(base=BASE, child="schema: 1\nname: c\nextends: ../base/recipe.yaml\n")
    overrides = ["stages.train.rules.one=null", "stages.train.rules.one=times"]
    assert list(bench.load(*overrides).config("train").rules) == ["two", "one"]


def test_the_recipe_s_execution_is_below_every_stage_s(bench):
    head = "schema: 1\nname: t\nexecution: {threads: 3, micro_batch: 2, launcher: {use: local}}\nstages:\n"
    bench.write("  short: toy-corpus\n  long: {use: toy-train, execution: {threads: 4, launcher: {}}}\n", head)
    recipe = bench.load("execution.micro_batch=5")
    short, long = recipe.config("short").execution, recipe.config("long").execution
    assert (short.threads, short.micro_batch, long.threads, long.micro_batch) == (3, 5, 4, 5)
    assert identity(recipe.config("short")) == {}


def test_deepspeed_is_refused_with_what_to_take_instead(bench):
    bench.write("  a: {use: toy-train, execution: {strategy: deepspeed}}\n")
    with pytest.raises(InvalidRecipe, match="deepspeed is not taken: `fsdp` shards as its ZeRO-2 does"):
        bench.load()


def test_a_stage_s_launcher_merges_with_the_recipe_s(bench):
    head = "schema: 1\nname: t\nexecution: {launcher: {use: far, nodes: 2}}\nstages:\n"
    bench.write("  a: {use: toy-train, execution: {launcher: {queue: q}}}\n", head)
    assert bench.load().config("a").execution.launcher.config.model_dump() == {"nodes": 2, "queue": "q"}
    bench.write("  a: {use: toy-train, execution: {launcher: local}}\n", head)
    assert bench.load().config("a").execution.launcher.component.name == "local"


# ── the graph ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_stages_run_in_the_order_of_the_file_but_after_their_inputs(bench):
    bench.write(
        "  c: {use: toy-train, models: {x: a, y: b}}\n  z: {use: toy-corpus}\n  b: {use: toy-train, corpus: z}\n"
        "  a: {use: toy-train}\n"
    )
    assert list(bench.load().stages) == ["a", "z", "b", "c"]
    assert bench.load().upstream("c") == ["a", "b"]


def test_a_path_to_an_artifact_is_typed_by_its_manifest(bench, tmp_path):
    bench.write("  data: {use: toy-corpus}\n  train: {use: toy-train}\n").run()
    corpus, model = bench.artifact("data"), bench.artifact("train")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "config.json").write_text("{}")
    bench.write(
        f"  t: {{use: toy-train, corpus: {corpus}, model: {model}}}\n  u: {{use: toy-train, model: ./foreign}}\n"
    )
    assert set(bench.statuses().values()) == {"built"}
    bench.write(
        f"  t: {{use: toy-train, corpus: {model}, model: {corpus}}}\n  u: {{use: toy-train, corpus: ./foreign}}\n"
    )
    with pytest.raises(InvalidRecipe) as caught:
        bench.load()
    assert [(p.path, p.what.partition("is a ")[2] or p.what) for p in caught.value.problems] == [
        ("stages.t.corpus", "model, but a corpus goes here"),
        ("stages.t.model", "corpus, but a model goes here"),
        ("stages.u.corpus", "a corpus goes here, which does not come from outside"),
    ]


def test_what_is_resolved_loads_to_the_same_keys(bench):
    import yaml

    bench.write("  b: {use: toy-train, model: a, rules: {x: {use: plus, every: 2}}}\n  a: {use: toy-train, more: {}}\n")
    first = bench.load("seed=3", "execution.threads=2")
    bench.recipe.write_text(yaml.safe_dump(first.resolved(), sort_keys=False))
    assert {n: identity(u.config) for n, u in bench.load().stages.items()} == {
        n: identity(u.config) for n, u in first.stages.items()
    }


# ── what is misspelt ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_variable_that_nothing_reads_is_no_override(files):
    """Misspelt, it would change nothing and say nothing."""
    bench = files(base=BASE)
    with pytest.raises(InvalidRecipe, match=r"no file of this recipe has the variable 'm', and nothing reads it"):
        bench.load("vars.m=5")
    assert bench.load("vars.m=5", "vars.n=${vars.m}").config("train").steps == 5


def test_an_override_below_a_misspelt_entry_names_the_one_meant(files):
    with pytest.raises(InvalidRecipe) as caught:
        files(base=BASE).load("stages.trian.steps=5")
    assert [problem.next for problem in caught.value.problems] == ["did you mean 'train'?"]
