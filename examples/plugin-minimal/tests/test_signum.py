"""What recipe-signum must hold: the checks of recipe_runner.testing, and its own arithmetic."""

import torch
from recipe_signum.signum import Signum

from recipe_runner import Record
from recipe_runner.testing import check_filter, check_optimizer, check_plugin, slot


def parameters() -> list[torch.nn.Parameter]:
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(4, 6)), torch.nn.Parameter(torch.randn(3))]


def test_the_plugin_loads_lightly_and_whole():
    check_plugin("recipe-signum")


def test_signum_goes_on_bit_for_bit_from_its_state():
    check_optimizer(slot("optimizer", {"use": "signum", "lr": 1e-2}).build(), parameters())


def test_one_step_is_the_paper_s():
    """m = .9 m + .1 g, w - lr (sign m + decay w); from m = -1 and 1, g = 2: m = -0.7 and 1.1."""
    weight = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
    optimizer = Signum([weight], lr=0.1, momentum=0.9, weight_decay=0.5)
    optimizer.state[weight]["m"] = torch.tensor([-1.0, 1.0])
    weight.grad = torch.tensor([2.0, 2.0])
    optimizer.step()
    assert torch.allclose(weight.detach(), torch.tensor([1 - 0.1 * (-1 + 0.5), 1 - 0.1 * (1 + 0.5)]))
    assert torch.allclose(optimizer.state[weight]["m"], torch.tensor([-0.7, 1.1]))


def test_groups_keep_their_own_rate_and_decay():
    from recipe_runner import ParamGroup

    first, second = parameters()
    groups = [ParamGroup([first], "matrix", decay=True, lr_scale=0.5), ParamGroup([second], "vector", decay=False)]
    built = slot("optimizer", {"use": "signum", "lr": 1e-2, "weight_decay": 0.2}).build().build(groups)
    assert [(group["lr"], group["weight_decay"]) for group in built.param_groups] == [(5e-3, 0.2), (1e-2, 0.0)]


def test_min_words_judges_each_document_alone():
    texts = ["", "one two", "one two three", "one\ntwo\tthree four"]
    turns = [{"role": "user", "content": "one two"}, {"role": "assistant", "content": "three"}]
    records = [Record(str(n), text) for n, text in enumerate(texts)] + [Record("turns", messages=turns)]
    judge = slot("filter", {"use": "min-words", "words": 3}).build()
    check_filter(judge, records)
    assert [verdict.keep for verdict in judge.judge(records)] == [False, False, True, True, True]
    assert {verdict.reason for verdict in judge.judge(records[:2])} == {"few-words"}
