"""The toy stages: one writes a corpus, one `trains` a number, step by step, with checkpoints."""

import json
import os
import time
from pathlib import Path

from recipe_runner import Interrupted, RecipeError


class Plus:
    def __init__(self, config):
        self.by = config.by

    def __call__(self, value):
        return value + self.by


class Times(Plus):
    def __call__(self, value):
        return value * self.by


class Write:
    def __init__(self, config):
        self.config = config

    def run(self, ctx):
        words = self.config.words * self.config.repeat
        if self.config.text:
            words = Path(self.config.text).read_text().split()
        folder = ctx.payload / "train" / "all"
        folder.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps({"id": str(n), "text": word}) + "\n" for n, word in enumerate(words)]
        (folder / "0.jsonl").write_text("".join(lines))
        shard = {"file": "train/all/0.jsonl", "documents": len(words), "bytes": sum(map(len, words))}
        index = {"domains": {"all": {"train": {**{k: shard[k] for k in ("documents", "bytes")}, "shards": [shard]}}}}
        (ctx.payload / "corpus.json").write_text(json.dumps(index))
        ctx.note(words=len(words), beside=self.config.beside)


class Train:
    """Each step adds a pseudo-random number and applies the rules; a checkpoint every `checkpoint_every` steps."""

    def __init__(self, config):
        self.config = config

    def run(self, ctx):
        config = self.config
        start, value = self._resume(ctx)
        rules = [config.rule.build(), *(use.build() for use in config.rules.values())]
        for step in range(start, config.steps):
            if step == config.fail_at:
                raise ZeroDivisionError("a defect")
            if config.mistake and step == 3:
                raise RecipeError(config.mistake, next="write something else")
            value += ctx.seed("step", step) % 1000 / 1000
            for rule in rules:
                value = rule(value) % 1e6
            ctx.metrics(step + 1, loss=value)
            ctx.progress(step + 1, config.steps, "steps")
            if (step + 1) % config.execution.checkpoint_every == 0 or ctx.stopping():
                self._save(ctx, step + 1, value)
            if ctx.stopping():
                raise Interrupted
            time.sleep(config.pause)
        ctx.note(value=value, pid=os.getpid())
        (ctx.payload / "model.json").write_text(json.dumps({"value": value}))

    def _resume(self, ctx):
        try:
            step, value = json.loads((ctx.work / "checkpoint.json").read_text())
        except (OSError, ValueError):
            ctx.resume_from(0)
            return 0, 0.0
        ctx.resume_from(step)
        return step, value

    def _save(self, ctx, step, value):
        ctx.flush()
        temporary = ctx.work / "checkpoint.tmp"
        temporary.write_text(json.dumps([step, value]))
        temporary.replace(ctx.work / "checkpoint.json")
