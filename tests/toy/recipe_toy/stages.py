"""The toy stages: one writes a corpus, one `trains` a number, step by step, with checkpoints."""

import ctypes
import json
import multiprocessing
import os
import signal
import sys
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


class Told:
    """A tracker that writes down the kinds it hears, or raises at each."""

    def __init__(self, config):
        self.config = config

    def on_event(self, event):
        if self.config.fails:
            raise OSError("no line to the tracker")
        with open(self.config.path, "a") as file:
            file.write(event.kind + "\n")


class Write:
    def __init__(self, config):
        self.config = config

    def run(self, ctx):
        if self.config.empty:
            return
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
        self._children(ctx)
        for step in range(start, config.steps):
            self._trouble(ctx, step)
            value += ctx.seed("step", step) % 1000 / 1000
            for rule in rules:
                value = rule(value) % (config.ceiling or 1e9)
            ctx.metrics(step + 1, loss=value)
            ctx.progress(step + 1, config.steps, "steps")
            if config.noise:
                ctx.warn(f"step {step + 1} " + "é\udc80" * config.noise)
            if (step + 1) % config.execution.checkpoint_every == 0 or ctx.stopping():
                self._save(ctx, step + 1, value)
            if ctx.stopping() and step + 1 < config.steps and not config.deaf:
                raise Interrupted
            time.sleep(config.pause or 0)
        ctx.note(value=value, cwd=os.getcwd(), remote_code=ctx.allow_remote_code)
        if ctx.rank == 0:
            (ctx.payload / "model.json").write_text(json.dumps({"value": value}))

    def _trouble(self, ctx, step):
        config = self.config
        if 0 <= config.fail_at <= step and ctx.rank == config.fail_rank:
            raise ZeroDivisionError(f"a defect on rank {ctx.rank}")
        if step == config.tear_at:
            os.write(ctx._events, b'{"kind": "metrics", "stage": "x", "data": {"st')
            os.kill(os.getpid(), signal.SIGKILL)
        if step == config.leave_at:
            sys.exit(0)
        if config.mistake and step == 3:
            raise RecipeError(config.mistake, next="write something else")
        if step == config.hold_at:
            (ctx.folder / "holding").write_text(str(os.getpid()))
            ctypes.PyDLL(None).sleep(config.grip)  # no other thread runs meanwhile, not even the watch on the parent
            while (ctx.folder / "holding").exists() and (config.deaf or not ctx.stopping()):
                time.sleep(0.01)

    def _children(self, ctx):
        """A process that outlives the worker unless something ends it."""
        if self.config.spawn:
            context = multiprocessing.get_context(self.config.spawn)
            child = context.Process(target=time.sleep, args=(1000,), daemon=True)
            child.start()
            (ctx.folder / "child").write_text(str(child.pid))

    def _checkpoint(self, ctx):
        """Ranks do not wait for each other here, so each has its own."""
        return ctx.work / ("checkpoint.json" if ctx.rank == 0 else f"checkpoint-{ctx.rank}.json")

    def _resume(self, ctx):
        try:
            step, value = json.loads(self._checkpoint(ctx).read_text())
        except (OSError, ValueError):
            ctx.resume_from(0)
            return 0, 0.0
        ctx.resume_from(step)
        return step, value

    def _save(self, ctx, step, value):
        ctx.flush()
        temporary = self._checkpoint(ctx).with_suffix(".tmp")
        temporary.write_text(json.dumps([step, value]))
        temporary.replace(self._checkpoint(ctx))
