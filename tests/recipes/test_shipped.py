"""Every shipped recipe is valid and can be planned; every tiny one runs, twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recipe_runner.recipe import load

RECIPES = sorted((Path(__file__).resolve().parents[2] / "recipes").glob("*.yaml"))
TINY = [path for path in RECIPES if "tiny" in path.stem]
slow = pytest.mark.slow


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_valid_and_can_be_planned(path, tmp_path, recipe):
    checked = recipe("check", str(path), "--json")
    assert checked.returncode == 0, checked.stderr
    assert json.loads(checked.stdout)["ok"]
    planned = recipe("plan", str(path), "--store", str(tmp_path), "--json")
    assert planned.returncode == 0, planned.stderr
    stages = json.loads(planned.stdout)["stages"]
    assert [stage["status"] for stage in stages if stage["status"] == "cached"] == []


@pytest.mark.parametrize("name", ["pretrain-125m", "pretrain-125m-muon"])
def test_pretrain_125m_is_the_recipe_it_says_it_is(name):
    """2.5 billion tokens, half a million a step; the last fifth is annealed on the pages of the highest score."""
    loaded = load(f"recipes/{name}.yaml")
    base, annealed, tokeniser = (loaded.config(stage) for stage in ("base", "annealed", "tokeniser"))
    shape = base.architecture.config
    sizes = (shape.num_hidden_layers, shape.hidden_size, shape.intermediate_size, shape.max_position_embeddings)
    assert (*sizes, shape.tie_word_embeddings, tokeniser.vocab_size) == (12, 768, 2048, 2048, True, 32768)
    for stage in (base, annealed):
        assert (stage.sequence_length, stage.tokens_per_step) == (2048, 2**19)
        assert (stage.precision, stage.compile, stage.max_grad_norm) == ("bf16", True, 1.0)
    tokens = base.budget.tokens + annealed.budget.tokens
    assert (tokens, annealed.budget.tokens / tokens) == (2_500_000_000, 0.2)
    assert base.schedule.component.name == "wsd"
    assert base.schedule.config.decay == 0, "`annealed` decays"
    assert base.schedule.config.warmup * base.budget.tokens / tokens == pytest.approx(0.02)
    assert (annealed.select["best"].where, annealed.mix["best"]) == ("score >= 3.5", max(annealed.mix.values()))
    assert annealed.schedule.build().factor(954, 954) == 0
    optimizer = base.optimizer.config
    muon = name.endswith("muon")
    betas = optimizer.adamw_betas if muon else optimizer.betas
    assert (optimizer.lr, betas, optimizer.weight_decay) == (6e-4, (0.9, 0.95), 0.1)
    assert base.optimizer.component.name == ("muon" if muon else "adamw")


@pytest.mark.parametrize(
    ("name", "stage", "step"),
    [("lora-8b", "adapter", 2**16), ("sft-full-1b", "chat", 2**17), ("dpo-8b", "preferred", 64 * 2 * 2048)],
)
def test_fine_tuning_is_the_recipe_it_says_it_is(name, stage, step):
    """The numbers that the field knows these three by."""
    loaded = load(f"recipes/{name}.yaml")
    found = loaded.config(stage)
    optimizer, schedule = found.optimizer, found.schedule
    assert (optimizer.component.name, found.max_grad_norm, found.tokens_per_step) == ("adamw", 1.0, step)
    if adapter := getattr(found, "adapter", None):
        assert (found.precision, adapter.component.name) == ("bf16", "lora")  # frozen; adapters are fp32 (test_lora)
        assert (adapter.config.r, adapter.config.alpha, adapter.config.dropout) == (32, 64, 0.05)
    if name == "lora-8b":
        assert loaded.config(stage).model.text.startswith("Qwen/Qwen3-8B-Base@")
        assert (optimizer.config.lr, schedule.component.name, schedule.config.warmup) == (2e-4, "cosine", 0.03)
        assert (found.sequence_length, found.budget.epochs) == (4096, 2)
    elif name == "sft-full-1b":
        assert loaded.config(stage).model.text.startswith("HuggingFaceTB/SmolLM2-1.7B@")
        assert (optimizer.config.lr, optimizer.config.betas) == (2e-5, (0.9, 0.95))
        assert (schedule.component.name, schedule.config.final) == ("linear", 0)
        assert (found.precision, found.sequence_length, found.evaluation.keep) == ("bf16", 4096, "best")
    else:
        objective = found.objective
        assert (objective.component.name, objective.config.beta, optimizer.config.lr) == ("dpo", 0.1, 5e-6)
        assert (found.batch_size, found.budget.epochs) == (64, 1)


OWN = {
    "lora-8b": "conversations.sources.chat", "sft-full-1b": "conversations.sources.chat",
    "qlora-7b": "conversations.sources.chat", "qlora-70b": "conversations.sources.chat",
    "merge-ties": "conversations.sources.chat", "dpo-8b": "pairs.sources.feedback",
}  # fmt: skip


@pytest.mark.parametrize("name", OWN)
def test_fine_tuning_takes_one_s_own_file_by_one_override(name, tmp_path):
    """As the head of each recipe says."""
    row = "preference" if name == "dpo-8b" else "alpaca"
    (tmp_path / "mine.jsonl").write_text("{}\n")
    said = f"stages.{OWN[name]}={{use: jsonl, path: ./mine.jsonl, format: {row}}}"
    assert f"recipe run {name} '{said}'" in Path(f"recipes/{name}.yaml").read_text(encoding="utf-8")
    loaded = load(f"recipes/{name}.yaml", [said.replace("./mine", f"{tmp_path}/mine")])
    assert not loaded.hints
    _, stage, _, source = f"stages.{OWN[name]}".split(".")
    assert loaded.config(stage).sources[source].component.name == "jsonl"


@slow
def test_tiny_keeps_most_of_each_domain(tiny):
    for domain, steps in tiny.manifest("corpus")["facts"]["funnel"].items():
        assert steps[-1]["bytes"] >= 0.6 * steps[0]["bytes"], domain


@slow
def test_tiny_holds_what_it_shows(tiny):
    """The signs, with their margins, as `expect:` of the recipe asserted them."""
    models = tiny.results()["models"]
    assert models["annealed"]["bits_per_byte"]["reference"] <= models["base"]["bits_per_byte"]["reference"] - 0.05
    how = {name: models[name]["answers"]["questions"]["how"] for name in ("annealed", "chat")}
    assert how["chat"]["own"]["content"] <= how["annealed"]["own"]["content"] - 0.3
    assert how["chat"]["own"]["end_of_turn"] < 1
    assert how["chat"]["own"]["content"] <= how["chat"]["permuted"]["content"] - 0.1
    facts = {name: models[name]["exact_match"]["taught"]["fact"] for name in ("chat", "adapter", "merged")}
    assert facts["chat"] + 0.25 <= facts["adapter"] == facts["merged"]


@slow
def test_tiny_s_merged_model_is_base_plus_adapter(tiny):
    gate = tiny.manifest("merged")["facts"]["merge"]
    assert gate["difference"] <= 1e-4
    assert gate["adapter_effect"] >= 1e-2


@slow
def test_tiny_loads_with_the_field_s_own_classes(tiny):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    chat, merged = (tiny.folder(stage) / "payload" for stage in ("chat", "merged"))
    tokenizer = AutoTokenizer.from_pretrained(merged)
    base = AutoModelForCausalLM.from_pretrained(chat, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, tiny.folder("adapter") / "payload").eval()
    whole = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32).eval()
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Where is `dedent` defined?"}], return_dict=False, return_tensors="pt"
    )
    with torch.no_grad():
        assert torch.allclose(adapted(ids).logits, whole(ids).logits, atol=1e-4)


@slow
@pytest.mark.parametrize("path", TINY, ids=lambda path: path.stem)
def test_a_second_run_is_all_cached(path, tiny, ran):
    first = ran(path.stem)
    shared = first.run()["stages"]
    if path.stem != "tiny" and "chat" in shared:
        assert shared["chat"]["status"] == "cached", "what comes before a change is shared through the store"
    second = ran(path.stem)
    run = second.run()
    assert {stage["status"] for stage in run["stages"].values()} == {"cached"}
    assert run["status"] == "finished"


@slow
def test_a_change_reruns_its_stage_and_what_follows_as_plan_says(tiny, store, recipe):
    planned = recipe("plan", "recipes/tiny.yaml", "stages.chat.optimizer.lr=5e-4", "--store", str(store), "--json")
    stages = {stage["stage"]: stage for stage in json.loads(planned.stdout)["stages"]}
    assert stages["chat"]["reasons"] == ["config-changed (stages.chat.optimizer.lr 0.001 → 0.0005)"]
    before = list(stages)[: list(stages).index("chat")]
    assert {stages[name]["status"] for name in before} == {"cached"}
    after = list(stages)[list(stages).index("chat") + 1 :]
    assert {stages[name]["status"] for name in after} == {"pending"}


@slow
def test_the_fork_shares_everything_before_its_change(tiny, store, recipe):
    fork = "examples/fork-a-recipe/faster-chat.yaml"
    stages = json.loads(recipe("plan", fork, "--store", str(store), "--json").stdout)["stages"]
    cached = [stage["stage"] for stage in stages if stage["status"] == "cached"]
    assert cached == ["corpus", "questions", "skill", "tokeniser", "base", "annealed"]


@slow
def test_chat_answers_with_the_merged_model(tiny, store, recipe):
    done = recipe("chat", "tiny", "--store", str(store), "--prompt", "What does `textwrap.dedent` do?")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@slow
def test_the_report_is_there(tiny):
    folder = sorted((tiny.store / "runs" / "tiny").iterdir())[-1]
    html = (folder / "report.html").read_text(encoding="utf-8")
    for stage in tiny.run()["stages"]:
        assert stage in html
