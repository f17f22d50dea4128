"""A plugin as third parties write it, whose stages take no time; tests put its folder on PYTHONPATH."""

from recipe_runner import Component, hookimpl


def _component(kind, name, target, config):
    return Component(kind=kind, name=name, target=f"recipe_toy.{target}", config=f"recipe_toy.{config}")


@hookimpl
def register_components():
    return [
        _component("stage", "toy-corpus", "stages:Write", "config:WriteConfig"),
        _component("stage", "toy-train", "stages:Train", "config:TrainConfig"),
        _component("toy-rule", "plus", "stages:Plus", "config:RuleConfig"),
        _component("toy-rule", "times", "stages:Times", "config:RuleConfig"),
        _component("toy-rule", "broken", "absent:X", "absent:XConfig"),
        _component("launcher", "far", "absent:Far", "config:FarConfig"),
        _component("tracker", "told", "stages:Told", "config:ToldConfig"),
    ]
