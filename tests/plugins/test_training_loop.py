"""The mixin, over both trainers: normalisation, order, errors, resume under other conditions."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest

from recipe_runner import Interrupted, RecipeError
from recipe_runner.testing import LocalContext
from recipe_runner.testing.local import slot

pytestmark = pytest.mark.slow

VOCAB, LENGTH = 64, 16


class Rows:
    """Random rows; `labelled` says which have labels."""

    def __init__(self, count=20, labelled=lambda number: True):
        self.count, self.labelled, self.read = count, labelled, []

    def __len__(self):
        return self.count

    def __getitem__(self, number):
        self.read.append(number)
        ids = np.random.default_rng(number).integers(0, VOCAB, LENGTH)
        labels = ids if self.labelled(number) else np.full(LENGTH, -100)
        return {"input_ids": ids, "labels": labels, "position_ids": np.arange(LENGTH)}


def model():
    import torch

    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    return slot("architecture", {"use": "llama", **shape, "max_position_embeddings": LENGTH}).build().build(VOCAB)


def tokenizer():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({str(n): n for n in range(VOCAB)}, unk_token="0"))
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="1", pad_token="2")


def trained(folder, *, rows=None, context=None, steps=6, trainer="TokenTrainer", digests=None, net=None, **changes):
    import recipe_plugins.training as training

    execution = {"device": "cpu", "threads": 1, "checkpoint_every": 2, **changes.pop("execution", {})}
    settings = {"budget": {"steps": steps}, "batch_size": 4, "sequence_length": LENGTH, "execution": execution}
    config = training.TrainingConfig.model_validate({**settings, **changes})
    context = context or LocalContext(folder)
    result = training.train(
        context,
        config,
        net or model(),
        rows or Rows(),
        tokenizer(),
        steps=steps,
        optimizer=config.optimizer,
        digests=digests or {},
        trainer=getattr(training, trainer),
    )
    return context, result


def losses(context):
    return [row["loss"] for row in context.rows]


def test_both_trainers_are_one_loop(tmp_path):
    one, _ = trained(tmp_path / "one")
    other, _ = trained(tmp_path / "other", trainer="SupervisedTrainer")
    assert losses(one) == losses(other)
    assert [row["step"] for row in one.rows] == list(range(1, 7))
    assert set(one.rows[0]) == {"step", "loss", "lr", "grad_norm", "tokens_per_second"}


def test_the_loss_is_the_mean_over_the_labels_of_the_step(tmp_path):
    import torch

    from recipe_plugins.training.losses import summed_loss

    rows = Rows(labelled=lambda number: number % 3 > 0)
    context, result = trained(tmp_path, rows=rows, steps=1, execution={"micro_batch": 1})
    read = [rows[number] for number in rows.read[:4]]
    ids, labels = (torch.tensor(np.stack([row[key] for row in read])) for key in ("input_ids", "labels"))
    expected = summed_loss(model()(input_ids=ids).logits, labels) / (labels[:, 1:] != -100).sum()
    assert losses(context) == [pytest.approx(expected.item(), rel=1e-6)]
    assert result.supervised_tokens == (labels[:, 1:] != -100).sum()
    assert result.tokens == ids.numel()


@pytest.mark.parametrize("trainer", ["TokenTrainer", "SupervisedTrainer"])
def test_a_step_without_labels_is_a_counted_zero(tmp_path, trainer):
    context, result = trained(tmp_path, rows=Rows(labelled=lambda number: False), steps=2, trainer=trainer)
    assert losses(context) == [0.0, 0.0]
    assert (result.rows_without_labels, result.supervised_tokens) == (8, 0)


def test_every_epoch_reads_each_row_once_in_an_order_of_its_own(tmp_path):
    rows = Rows(count=8)
    trained(tmp_path, rows=rows, steps=6)
    epochs = [rows.read[first : first + 8] for first in (0, 8, 16)]
    assert all(sorted(epoch) == list(range(8)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_loss_that_is_not_a_number_stops_the_run(tmp_path):
    net = model()
    rows = Rows()
    context = LocalContext(tmp_path)
    poison = context.metrics

    def metrics(step, **values):
        poison(step, **values)
        if step == 3:
            net.model.norm.weight.data.fill_(float("nan"))

    context.metrics = metrics
    with pytest.raises(RecipeError, match="step 4: the loss is nan") as error:
        trained(tmp_path, rows=rows, context=context, net=net)
    assert "step-2" in error.value.next
    assert len(context.rows) == 3


def test_no_rank_goes_on_before_a_checkpoint_is_complete(tmp_path, monkeypatch):
    """One that is asked to stop ends then, and the launcher ends those that are still writing."""
    from accelerate import Accelerator

    from recipe_plugins.training import checkpoints

    waited = []

    def wait(self):
        folders = checkpoints.steps_of(tmp_path / "work" / "checkpoints")
        waited.append({step: checkpoints.is_complete(folder) for step, folder in folders.items()})

    monkeypatch.setattr(Accelerator, "wait_for_everyone", wait)
    context = LocalContext(tmp_path)
    context.stop = True
    with pytest.raises(Interrupted):
        trained(tmp_path, context=context, steps=2, execution={"checkpoint_every": 100})
    assert waited[-1] == {1: True}


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_stopping_saves_and_is_gone_on_from(tmp_path, dropout):
    """Bit for bit, also where every step draws random numbers."""

    def net():
        made = model()
        made.model.layers[0].self_attn.attention_dropout = dropout
        return made

    straight, _ = trained(tmp_path / "straight", net=net())
    context = LocalContext(tmp_path / "stopped")
    kept = context.metrics

    def metrics(step, **values):
        kept(step, **values)
        context.stop = step == 3

    context.metrics = metrics
    with pytest.raises(Interrupted, match="stopped after step 4 of 6, which is saved"):
        trained(None, context=context, net=net())
    context.metrics, context.stop = kept, False
    _, result = trained(None, context=context, net=net())
    assert result.resumed_from == 4
    assert losses(context) == losses(straight)
    assert (dropout == 0) == (losses(straight) == losses(trained(tmp_path / "plain")[0]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"digests": {"corpus": "b"}}, "the data or the tokeniser changed"),
        ({"steps": 7}, "the number of steps changed"),
        ({"batch_size": 8}, "the batch size changed"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(tmp_path, change, message):
    trained(tmp_path, digests={"corpus": "a"})
    with pytest.raises(RecipeError, match=message):
        trained(tmp_path, **{"digests": {"corpus": "a"}, **change})


def test_another_number_of_processes_is_refused_with_two_remedies(tmp_path):
    trained(tmp_path)
    state = tmp_path / "work" / "checkpoints" / "step-6" / "state.json"
    changed = {**json.loads(state.read_text()), "world_size": 2}
    state.write_text(json.dumps(changed).ljust(state.stat().st_size))
    mark = state.with_name("complete.json")
    mark.write_text(json.dumps({**json.loads(mark.read_text()), "state.json": state.stat().st_size}))
    with pytest.raises(RecipeError, match="had 2 processes, this one has 1") as error:
        trained(tmp_path)
    assert "execution.processes: 2" in error.value.next
    assert "--restart" in error.value.next


def test_a_finished_run_is_not_trained_again(tmp_path):
    context, first = trained(tmp_path)
    _, again = trained(None, context=context, net=model())
    assert again.resumed_from == 6
    assert (again.loss, again.tokens) == (first.loss, first.tokens)
    assert len(context.rows) == 6


def test_checkpoints_are_saved_by_time_too(tmp_path, monkeypatch):
    from recipe_plugins.training import checkpoints, resuming, trainer

    def saved(name, minutes):
        execution = {"checkpoint_every": 100, "keep_checkpoints": 100, "checkpoint_minutes": minutes}
        context, _ = trained(tmp_path / name, steps=6, execution=execution)
        return list(checkpoints.steps_of(context.work / "checkpoints"))

    assert saved("never", 0) == [6]
    assert saved("always", 1e-6) == [1, 2, 3, 4, 5, 6]
    told = []
    for module in (trainer, resuming):
        monkeypatch.setattr(module, "time", Clock(told))
    monkeypatch.setattr(LocalContext, "metrics", lambda self, step, **values: told.append(step))
    assert saved("sometimes", 1) == [2, 4, 6]  # the minute that a save ends in is not counted again


class Clock:
    """`time`, by which every row of metrics is a minute later."""

    def __init__(self, told):
        self.told = told

    def monotonic(self):
        return 60.0 * len(self.told)

    def __getattr__(self, name):
        return getattr(time, name)


def test_what_the_libraries_were_told_is_noted(tmp_path):
    context, _ = trained(
        tmp_path,
        steps=3,
        max_grad_norm=0.7,
        gradient_checkpointing=True,
        schedule={"use": "cosine", "warmup": 1},
        execution={"micro_batch": 3},
    )
    noted = context.facts["training"]
    assert noted["chunked_loss"] is False
    assert noted["per_device_train_batch_size"] == 3
    assert noted["gradient_accumulation_steps"] == 2
    assert noted["max_grad_norm"] == 0.7
    assert noted["gradient_checkpointing"] is True
    assert noted["tokens"] == 3 * 4 * LENGTH
    assert noted["schedule"]["use"].endswith("cosine")
    assert context.rows[2]["lr"] == pytest.approx(1e-3 * (1 + np.cos(np.pi / 2)) / 2)


def test_gradient_checkpointing_changes_no_loss(tmp_path):
    plain, _ = trained(tmp_path / "plain")
    saved, _ = trained(tmp_path / "saved", gradient_checkpointing=True)
    np.testing.assert_allclose(losses(saved), losses(plain), rtol=1e-6)


def test_gradients_are_clipped(tmp_path):
    clipped, _ = trained(tmp_path / "clipped", steps=3, max_grad_norm=1e-4, optimizer={"eps": 1.0})
    free, _ = trained(tmp_path / "free", steps=3, max_grad_norm=0, optimizer={"eps": 1.0})
    assert clipped.rows[0]["grad_norm"] == pytest.approx(free.rows[0]["grad_norm"])  # the norm before clipping
    assert losses(free)[2] < losses(clipped)[2]


def test_a_device_that_is_not_there_is_named():
    import torch

    from recipe_plugins.training import device
    from recipe_runner import ExecutionConfig

    missing = "cuda" if not torch.cuda.is_available() else "mps"
    with pytest.raises(RecipeError, match=f"there is no {missing} device here"):
        device(ExecutionConfig(device=missing))


def test_bf16_keeps_fp32_weights_and_is_near_fp32(tmp_path):
    import torch

    net = model()
    half, _ = trained(tmp_path / "half", precision="bf16", net=net)
    full, _ = trained(tmp_path / "full")
    assert {parameter.dtype for parameter in net.parameters()} == {torch.float32}
    assert losses(half) != losses(full)
    np.testing.assert_allclose(losses(half), losses(full), rtol=2e-2)
    assert net(input_ids=torch.tensor([[1, 2]])).logits.dtype == torch.float32  # the autocast ended with training


def test_a_step_whose_loss_is_a_spike_is_left_out(tmp_path, monkeypatch):
    """Weights and moments pass over it; the schedule, the counters and the rows do not."""
    import torch

    from recipe_plugins.training import progress
    from recipe_plugins.training.trainer import RecipeTrainerMixin

    summed = RecipeTrainerMixin._summed
    monkeypatch.setattr(progress, "REMEMBERED", 8)
    monkeypatch.setattr(
        RecipeTrainerMixin,
        "_summed",
        lambda self, *given: tuple(part * (100 if self.state.global_step == 7 else 1) for part in summed(self, *given)),
    )
    nets = [model(), model()]
    seen = {}

    def watched(name, net, **changes):
        context = LocalContext(tmp_path / name)
        kept = context.metrics

        def metrics(step, **values):
            kept(step, **values)
            seen.setdefault(name, []).append(torch.cat([p.detach().flatten().clone() for p in net.parameters()]))

        context.metrics = metrics
        return trained(None, context=context, net=net, steps=10, **changes)[0]

    plain = watched("plain", nets[0])
    skipping = watched("skipping", nets[1], skip_spikes=4.0)
    assert skipping.facts["skipped_steps"] == [8]
    assert [row["skipped_steps"] for row in skipping.rows] == [0] * 7 + [1] * 3
    assert losses(skipping)[:8] == losses(plain)[:8]
    assert torch.equal(seen["skipping"][7], seen["skipping"][6])
    assert not torch.equal(seen["plain"][7], seen["plain"][6])
    assert [row["lr"] for row in skipping.rows] == [row["lr"] for row in plain.rows]


def test_a_loss_that_has_risen_for_good_is_no_spike_for_long():
    """Weights that are left as they are stay bad: whoever asks for better losses first would never step again."""
    from recipe_plugins.training.progress import Spikes

    draw, spikes = np.random.default_rng(0), Spikes()
    for step, level in enumerate([2.0] * 200 + [2.3] * 200):
        spikes.is_one(step, level + 0.02 * draw.standard_normal(), 6.0)
    assert spikes.skipped
    assert set(spikes.skipped) < set(range(200, 210))
