"""Mixtures of experts: what the balancing loss is, and that nothing but learned-from tokens counts in it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture
def routing():
    from recipe_plugins.training.routing import Routing

    return Routing.of(SimpleNamespace(num_experts_per_tok=1, router_aux_loss_coef=0.5), 4)


def logits_for(experts: list[list[int]]):
    """Routers, (rows · tokens, 4), that are sure of the given expert of each token of each row."""
    import torch

    return torch.nn.functional.one_hot(torch.tensor(experts).flatten(), 4).float() * 50


def test_the_balance_is_1_where_experts_are_used_alike_and_their_number_where_one_gets_all(routing):
    import torch

    labels = torch.ones(2, 4, dtype=torch.int64)
    loss = routing.loss([logits_for([[0, 1, 2, 3], [2, 2, 2, 2]])], labels)
    assert float(loss) == pytest.approx(0.5 * (1 + 4) / 4)  # coefficient, two of the step's four rows
    found = routing.metrics(lambda part: part)
    assert found["balance"] == pytest.approx(5 / 4)
    assert found["expert_load_max"] == pytest.approx(5 / 2)  # 5 of 8 tokens; 2 would be even
    assert found["expert_load_min"] == pytest.approx(1 / 2)
    assert found["experts_unused"] == 0


def test_tokens_after_the_last_label_do_not_count(routing):
    import torch

    labels = torch.tensor([[-100, 5, -100, -100], [-100, -100, -100, -100]])
    loss = routing.loss([logits_for([[0, 1, 1, 1], [0, 0, 0, 0]])], labels)
    assert float(loss) == pytest.approx(0.5 * 2 / 4)  # two tokens on two of four experts; the other row has none
    assert routing.metrics(lambda part: part)["experts_unused"] == 2


def test_the_gradient_leads_to_even_use(routing):
    import torch

    torch.manual_seed(0)
    logits = (torch.randn(64, 4) + torch.tensor([3.0, 0, 0, 0])).requires_grad_()
    routing.loss([logits], torch.ones(1, 64, dtype=torch.int64)).backward()
    assert logits.grad.sum(0)[0] > 0 > logits.grad.sum(0)[1:].max()  # away from the crowded expert


def test_models_without_experts_or_of_a_type_without_the_loss_have_none():
    from recipe_plugins.training.routing import Routing

    assert Routing.of(SimpleNamespace(), 4) is None
    assert Routing.of(SimpleNamespace(num_experts_per_tok=2), 4) is None


@pytest.mark.parametrize("weight", [0.0, None])
def test_a_loss_without_weight_moves_nothing_and_tells_how_experts_are_used(weight):
    import torch

    from recipe_plugins.training.routing import Routing

    routing = Routing.of(SimpleNamespace(num_experts_per_tok=1, router_aux_loss_coef=weight), 1)
    loss = routing.loss([logits_for([[2, 2, 2, 2]]).requires_grad_()], torch.ones(1, 4, dtype=torch.int64))
    assert float(loss) == 0
    assert not loss.requires_grad
    found = routing.metrics(lambda part: part)
    assert (found["balance"], found["expert_load_max"], found["experts_unused"]) == (4, 4, 3)


def test_a_mixture_of_experts_pretrains_evenly_and_tells_it(tmp_path, pretraining, tiny_corpus, tiny_tokeniser):
    """The balancing loss trains the router: with it, experts are used more evenly than without."""
    from recipe_runner.testing import LocalContext
    from recipe_runner.testing.local import slot

    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8}
    routed = {"num_experts": 4, "num_experts_per_tok": 1, "moe_intermediate_size": 32, "max_position_embeddings": 64}
    last = {}
    for weight in (0.0, 1.0):
        architecture = {"use": "qwen3-moe", **shape, **routed, "router_aux_loss_coef": weight, "initializer_range": 0.2}
        config = pretraining(architecture=architecture, optimizer={"lr": 1e-2}, budget={"steps": 24})
        context = LocalContext(tmp_path / str(weight), inputs={"corpus": tiny_corpus, "tokeniser": tiny_tokeniser})
        slot("stage", {"use": "pretrain", **config}).build().run(context)
        last[weight] = context.rows[-1]
    assert last[1.0]["balance"] < min(1.1, last[0.0]["balance"])
    assert last[1.0]["expert_load_max"] < last[0.0]["expert_load_max"]
    assert last[1.0]["experts_unused"] == 0


def test_a_mixture_of_experts_that_was_stopped_goes_on_bit_for_bit(tmp_path, pretraining, tiny_corpus, tiny_tokeniser):
    from recipe_runner import Interrupted
    from recipe_runner.identity import folder_files
    from recipe_runner.testing import LocalContext
    from recipe_runner.testing.local import slot

    class Stopping(LocalContext):
        def metrics(self, step, **values):
            super().metrics(step, **values)
            self.stop = step == 3

    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8}
    routed = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "router_aux_loss_coef": 0.1}
    config = pretraining(architecture={"use": "qwen3-moe", **shape, **routed}, budget={"steps": 6})
    inputs = {"corpus": tiny_corpus, "tokeniser": tiny_tokeniser}
    straight, first, second = (
        kind(tmp_path / name, inputs=inputs)
        for kind, name in ((LocalContext, "straight"), (Stopping, "cut"), (LocalContext, "cut"))
    )
    stage = slot("stage", {"use": "pretrain", **config})
    stage.build().run(straight)
    with pytest.raises(Interrupted):
        stage.build().run(first)
    stage.build().run(second)
    assert second.facts["training"]["steps"] == 6
    told = [
        [{name: value for name, value in row.items() if name != "tokens_per_second"} for row in rows]
        for rows in (first.rows + second.rows, straight.rows)
    ]
    assert told[0] == told[1]
    assert 0 < len(first.rows) < 6
    assert folder_files(second.payload) == folder_files(straight.payload)


@pytest.mark.parametrize("use", ["preference", "reward"])
def test_a_mixture_of_experts_learns_from_pairs_without_the_balancing_loss(tmp_path, tiny_tokeniser, use):
    """Their losses are not of tokens: no balance is added, so none is told."""
    import torch
    from transformers import AutoTokenizer, Qwen3MoeConfig, Qwen3MoeForCausalLM

    from recipe_runner import Model
    from recipe_runner.testing import LocalContext, slot

    from .conftest import TUNING, turn, write_conversations

    tokenizer = AutoTokenizer.from_pretrained(tiny_tokeniser.payload)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4}
    routed = {"head_dim": 8, "moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 1}
    config = Qwen3MoeConfig(vocab_size=len(tokenizer), router_aux_loss_coef=0.01, **shape, **routed)
    Qwen3MoeForCausalLM(config).save_pretrained(tmp_path / "moe/payload")
    tokenizer.save_pretrained(tmp_path / "moe/payload")
    rejected = [{"role": "assistant", "content": "No."}]
    rows = [turn(f"Is it {n}?", "Yes.", preference={"prompt": 1, "rejected": rejected}) for n in range(8)]
    corpus = write_conversations(tmp_path / "pairs", {"pairs": {"train": rows}})
    inputs = {"moe": Model(tmp_path / "moe", "0" * 64, {"facts": {}}), "pairs": corpus}
    settings = {**TUNING, "model": "moe", "corpus": "pairs", "template": "chatml", "budget": {"steps": 2}}
    context = LocalContext(tmp_path / "made", inputs=inputs)
    slot("stage", {"use": use, **settings}).build().run(context)
    assert [row["step"] for row in context.rows] == [1, 2]
    assert "balance" not in context.rows[0]
