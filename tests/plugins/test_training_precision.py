"""Precision, attention and compilation: what they must not change, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest

from recipe_runner import Interrupted, RecipeError
from recipe_runner.testing import LocalContext
from recipe_runner.testing.local import slot

pytestmark = pytest.mark.slow

VOCAB, LENGTH = 64, 32
EXECUTION = {"device": "cpu", "threads": 1, "checkpoint_every": 2, "micro_batch": 2}
SETTINGS = {"batch_size": 4, "sequence_length": LENGTH, "execution": EXECUTION}


class Rows:
    """Rows of two documents each."""

    def __len__(self):
        return 20

    def __getitem__(self, number):
        draw = np.random.default_rng(number)
        cut = int(draw.integers(4, LENGTH - 4))
        ids = draw.integers(0, VOCAB, LENGTH)
        positions = np.concatenate([np.arange(cut), np.arange(LENGTH - cut)])
        return {"input_ids": ids, "labels": np.where(positions == 0, -100, ids), "position_ids": positions}


def model():
    import torch

    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return slot("architecture", {"use": "llama", **shape, "max_position_embeddings": LENGTH}).build().build(VOCAB)


def tokenizer():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({str(n): n for n in range(VOCAB)}, unk_token="0"))
    return PreTrainedTokenizerFast(tokenizer_object=words)


def trained(folder, net=None, context=None, steps=6, trainer=None, **changes):
    import recipe_plugins.training as training

    config = training.TrainingConfig.model_validate({**SETTINGS, "budget": {"steps": steps}, **changes})
    context = context or LocalContext(folder)
    net = model() if net is None else net
    training.train(
        context,
        config,
        net,
        Rows(),
        tokenizer(),
        steps=steps,
        optimizer=config.optimizer,
        digests={},
        trainer=trainer or training.TokenTrainer,
    )
    return context


def losses(context):
    return [row["loss"] for row in context.rows]


def test_masters_add_up_what_bf16_would_lose(tmp_path):
    """Updates of less than half of bf16's spacing: without masters the weights would never move."""
    import torch

    net, steps = model(), 6
    start = torch.cat([p.detach().bfloat16().flatten() for p in net.parameters()])
    context = trained(tmp_path, net, precision="bf16-master", steps=steps, optimizer={"lr": 1e-5, "weight_decay": 0})
    assert {p.dtype for p in net.parameters()} == {torch.bfloat16}
    assert net.model.rotary_emb.inv_freq.dtype == torch.float32
    folder = context.work / "checkpoints" / "step-6"
    masters = torch.load(folder / "optimizer.pt", weights_only=True)["optimizer"]["masters"]
    by_group = torch.cat([p.detach().flatten() for p in masters])
    assert by_group.dtype == torch.float32
    ordered = sorted(float(x) for p in net.parameters() for x in p.detach().flatten())
    assert ordered == sorted(by_group.bfloat16().tolist())  # the weights are the rounded masters
    moved = (by_group.sort().values - start.float().sort().values).abs()
    assert 0 < moved.mean() < 1e-4  # so little that most weights stay where they are
    now = torch.cat([p.detach().flatten() for p in net.parameters()])
    assert (now == start).float().mean() > 0.5


def test_masters_are_near_fp32_and_go_on_exactly(tmp_path):
    full = trained(tmp_path / "full")
    straight = trained(tmp_path / "straight", precision="bf16-master")
    np.testing.assert_allclose(losses(straight), losses(full), rtol=2e-2)
    assert losses(straight) != losses(full)
    context = LocalContext(tmp_path / "stopped")
    kept = context.metrics

    def metrics(step, **values):
        kept(step, **values)
        context.stop = step == 3

    context.metrics = metrics
    with pytest.raises(Interrupted):
        trained(None, context=context, precision="bf16-master")
    context.metrics, context.stop = kept, False
    trained(None, context=context, precision="bf16-master")
    assert losses(context) == losses(straight)


def test_a_branch_with_masters_is_gone_on_from_in_fp32(tmp_path):
    import torch

    from recipe_plugins.training.groups import param_groups
    from recipe_plugins.training.masters import Masters, take_masters

    optimizer, net = slot("optimizer", {"use": "adamw"}).build(), model()
    exact = Masters(optimizer, param_groups(net))
    state, other = exact.state_dict(), model()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.copy_(parameter.bfloat16())
    take_masters(state, optimizer.build(param_groups(other)))
    assert all(torch.equal(*pair) for pair in zip(other.parameters(), net.parameters(), strict=True))


@pytest.mark.parametrize("chunked", ["on", "off"])
def test_fp16_keeps_fp32_weights_and_is_near_fp32(tmp_path, chunked):
    """Gradients too, which are divided by the loss scale again, clipped or not."""
    import torch

    for clip in (1.0, 0.0):
        full = trained(tmp_path / f"full-{clip}", steps=2, max_grad_norm=clip)
        net, settings = model(), {"precision": "fp16", "max_grad_norm": clip, "chunked_loss": chunked}
        half = trained(tmp_path / f"half-{clip}", net, steps=2, **settings)
        assert {p.dtype for p in net.parameters()} == {torch.float32}
        assert losses(half) != losses(full)
        for name in ("loss", "grad_norm"):
            np.testing.assert_allclose([r[name] for r in half.rows], [r[name] for r in full.rows], rtol=1e-2)
        assert half.facts["loss_scale"] == 2.0**16
        assert half.facts["overflowed_steps"] == []
        assert net(input_ids=torch.tensor([[1, 2]])).logits.dtype == torch.float32  # the autocast ended with training


def test_an_overflow_of_fp16_leaves_the_step_out_is_counted_and_goes_on_exactly(tmp_path, monkeypatch):
    """The scale is doubled after every good step, so that it soon is too large, again and again."""
    import torch

    from recipe_plugins.training import progress

    monkeypatch.setattr(progress, "GROWTH", 1)
    settings = {"precision": "fp16", "steps": 16, "skip_spikes": 6.0}
    straight = trained(tmp_path / "straight", **settings)
    over = straight.facts["overflowed_steps"]
    assert len(over) > 1
    assert [row["step"] for row in straight.rows if "grad_norm" not in row] == over
    assert straight.rows[-1]["overflowed_steps"] == len(over)
    scales = [2.0**16, *(row["loss_scale"] for row in straight.rows)]
    moves = {step: scales[step] / scales[step - 1] for step in range(1, 17)}
    assert moves == {step: 0.5 if step in over else 2.0 for step in range(1, 17)}
    context, net, seen = LocalContext(tmp_path / "stopped"), model(), {}
    kept = context.metrics

    def metrics(step, **values):
        kept(step, **values)
        seen[step] = torch.cat([p.detach().flatten().clone() for p in net.parameters()])
        context.stop = step == over[0]

    context.metrics = metrics
    with pytest.raises(Interrupted):
        trained(None, net, context, **settings)
    assert torch.equal(seen[over[0]], seen[over[0] - 1])
    context.metrics, context.stop = kept, False
    trained(None, context=context, **settings)
    assert losses(context) == losses(straight)
    assert context.facts["overflowed_steps"] == over
    schedule = slot("schedule", "wsd").build()
    assert [row["lr"] for row in context.rows] == pytest.approx([1e-3 * schedule.factor(n, 16) for n in range(16)])


def test_fp16_whose_gradients_always_overflow_stops(tmp_path):
    """Halving the scale for ever would train nothing without a word."""
    import torch

    net = model()
    net.model.layers[0].mlp.down_proj.register_full_backward_hook(
        lambda module, inputs, outputs: tuple(part * torch.inf for part in inputs)
    )
    with pytest.raises(RecipeError, match=r"step 17: the loss is .* and the gradient norm nan") as error:
        trained(tmp_path, net, precision="fp16", steps=20)
    assert "precision: bf16" in error.value.next


def test_compiled_is_eager_up_to_rounding_and_says_that_it_is_not_exact(tmp_path):
    eager, compiled = trained(tmp_path / "eager", steps=3), trained(tmp_path / "compiled", steps=3, compile=True)
    np.testing.assert_allclose(losses(compiled), losses(eager), rtol=1e-5)
    assert "not bit for bit" in compiled.warnings[0]
    assert compiled.facts["training"]["torch_compile"] is True


@pytest.mark.parametrize(
    ("precision", "dtype", "attention"),
    [("fp32", "float32", "sdpa"), ("bf16", "bfloat16", "sdpa-fp32"), ("fp16", "float16", "sdpa-fp32")],
)
def test_logits_are_never_held_in_more_than_the_precision(tmp_path, precision, dtype, attention):
    """And attention, which a CPU computes faster so, is in fp32; neither is left in the model's settings."""
    import recipe_plugins.training as training

    net, seen = model(), set()

    class Seen(training.TokenTrainer):
        def _summed(self, logits, *given):
            seen.add(str(logits.dtype))
            return super()._summed(logits, *given)

    context = trained(tmp_path, net, steps=2, precision=precision, chunked_loss="off", trainer=Seen)
    assert seen == {f"torch.{dtype}"}
    assert context.facts["training"]["attention"] == attention
    assert net.config._attn_implementation == "sdpa"


def test_attention_in_fp32_is_that_of_sdpa_but_for_its_rounding():
    """Nearer to the truth than in 16 bits, and documents of a packed row are as far apart."""
    import torch

    from recipe_plugins.training.attention import IN_FP32, isolates, set_attention

    net, row = model().eval(), Rows()[3]
    given = {key: torch.from_numpy(row[key])[None] for key in ("input_ids", "position_ids")}

    def logits(name, half):
        set_attention(net, name)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
            return net(**given, use_cache=False).logits.float()

    torch.testing.assert_close(logits(IN_FP32, half=False), logits("sdpa", half=False), rtol=0, atol=0)
    seen, sdpa = set(), torch.nn.functional.scaled_dot_product_attention
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            torch.nn.functional,
            "scaled_dot_product_attention",
            lambda *parts, **rest: seen.add((parts[0].dtype, torch.is_autocast_enabled("cpu"))) or sdpa(*parts, **rest),
        )
        half = logits(IN_FP32, half=True)
    assert seen == {(torch.float32, False)}
    assert (half - logits("sdpa", half=False)).abs().max() < 0.05
    assert isolates(net)


@pytest.mark.parametrize("precision", ["bf16", "bf16-master"])
def test_what_is_timed_for_a_budget_in_minutes_is_what_runs_and_is_undone(tmp_path, precision):
    import torch

    import recipe_plugins.training as training
    from recipe_plugins.training.timing import TIMED, UNTIMED, seconds_per_step

    seen = []

    class Seen(training.TokenTrainer):
        def compute_loss(self, model, inputs, *given, **more):
            found = {
                "chunked": self.head is not None, "dtype": next(self.model.parameters()).dtype,
                "scaled": self.loss_scale is not None, "checkpointing": self.model.is_gradient_checkpointing,
                "optimizer": type(self.optimizer.optimizer).__name__, "rows": len(inputs["input_ids"]),
                "autocast": torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu"),
            }  # fmt: skip
            seen.append(found)
            return super().compute_loss(model, inputs, *given, **more)

    settings = {"precision": precision, "gradient_checkpointing": True, "chunked_loss": "on"}
    trained(tmp_path / "run", steps=2, trainer=Seen, **settings)
    runs = seen.copy()
    seen.clear()
    net, context = model(), LocalContext(tmp_path / "timed")
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    objects, generator = dict(net.named_parameters()), torch.get_rng_state()
    longer = {"budget": {"minutes": 1}, "schedule": {"use": "wsd", "warmup": 50}}
    config = training.TrainingConfig.model_validate({**SETTINGS, **settings, **longer})
    given = (context, config, net, Rows(), tokenizer())
    seconds = seconds_per_step(*given, optimizer=config.optimizer, trainer=Seen)
    assert 0 < seconds < 10
    assert seen == runs[:1] * 2 * (UNTIMED + TIMED)  # of two micro-batches each
    assert all(torch.equal(p, before[name]) and p is objects[name] for name, p in net.named_parameters())
    assert all(p.grad is None and p.dtype == torch.float32 for p in net.parameters())
    assert torch.equal(torch.get_rng_state(), generator)
    assert not context.rows
    assert not (context.work / "checkpoints").exists()
    assert seconds_per_step(*given, optimizer=config.optimizer, trainer=Seen) == seconds
    assert len(seen) == 2 * (UNTIMED + TIMED)
    again = trained(tmp_path / "again", net, steps=2, **settings)
    assert losses(again) == losses(trained(tmp_path / "fresh", steps=2, **settings))


def test_attention_follows_the_device_and_refuses_what_does_not_train_there(tmp_path):
    import torch

    from recipe_plugins.training import TrainingConfig
    from recipe_plugins.training.attention import chosen

    assert trained(tmp_path / "auto", steps=1).facts["training"]["attention"] == "sdpa"
    settings = {"budget": {"steps": 1}, "batch_size": 1, "sequence_length": 8}
    on_cuda = chosen(TrainingConfig.model_validate({**settings, "precision": "bf16"}), torch.device("cuda"), model())
    assert on_cuda in ("flex", "flash2")  # which need no dense mask
    flash, flex = ({**settings, "precision": "bf16", "attention": name} for name in ("flash2", "flex"))
    with pytest.raises(RecipeError, match="flash-attn, which is not installed"):
        chosen(TrainingConfig.model_validate(flash), torch.device("cuda"), model())
    with pytest.raises(RecipeError, match="attention: flex has no backward pass on cpu"):
        chosen(TrainingConfig.model_validate(flex), torch.device("cpu"), model())  # where the device was left open


@pytest.mark.parametrize("chunked_loss", ["on", "off"])
def test_rows_end_to_end_train_as_rows_do(tmp_path, monkeypatch, chunked_loss):
    """As flash2 needs them; here for sdpa, which trains on a CPU and tells documents apart in either layout."""
    settings = {"steps": 3, "chunked_loss": chunked_loss, "z_loss": 1e-3}
    straight = losses(trained(tmp_path / "rows", **settings))
    monkeypatch.setattr("recipe_plugins.training.trainer.IN_ONE_ROW", {"sdpa"})
    net, shapes = model(), set()

    def see(module, given):
        shapes.add(tuple(given[0].shape))

    net.get_input_embeddings().register_forward_pre_hook(see)
    laid = losses(trained(tmp_path / "laid", net, **settings))
    assert max(shapes)[0] == 1
    assert max(shapes)[1] > LENGTH
    assert laid == pytest.approx(straight, rel=1e-5)


def test_flex_keeps_documents_apart_as_sdpa_does():
    """Forward only, which is all that a CPU has of it."""
    import torch

    from recipe_plugins.training.attention import set_attention

    net, row = model().eval(), Rows()[3]
    ids, positions = (torch.from_numpy(row[key])[None] for key in ("input_ids", "position_ids"))
    found = {}
    with torch.no_grad():
        for name in ("sdpa", "flex"):
            set_attention(net, name)
            found[name] = net(input_ids=ids, position_ids=positions, use_cache=False).logits
        whole = net(input_ids=ids, position_ids=torch.arange(LENGTH)[None], use_cache=False).logits
    torch.testing.assert_close(found["flex"], found["sdpa"], rtol=1e-5, atol=1e-6)
    assert (whole - found["sdpa"]).abs().max() > 1e-3  # and leaking is visible
