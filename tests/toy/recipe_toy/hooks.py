"""A plugin as third parties write it, whose stages take no time; tests put its folder on PYTHONPATH."""

from recipe_runner import Component, hookimpl


@hookimpl
def register_components():
    return [
        Component(kind="stage", name="toy-corpus", target="recipe_toy.stages:Write", config="recipe_toy.config:WriteConfig"),
        Component(kind="stage", name="toy-train", target="recipe_toy.stages:Train", config="recipe_toy.config:TrainConfig"),
        Component(kind="toy-rule", name="plus", target="recipe_toy.stages:Plus", config="recipe_toy.config:RuleConfig"),
        Component(kind="toy-rule", name="times", target="recipe_toy.stages:Times", config="recipe_toy.config:RuleConfig"),
        Component(kind="toy-rule", name="broken", target="recipe_toy.absent:X", config="recipe_toy.absent:XConfig"),
    ]
