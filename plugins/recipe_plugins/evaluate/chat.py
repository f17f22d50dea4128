"""Talking to a model in a terminal: what `recipe chat` runs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from recipe_plugins.evaluate.config import ChatConfig
from recipe_plugins.training.conversations import Renderer
from recipe_plugins.training.generation import stream
from recipe_plugins.training.machine import device
from recipe_runner import ExecutionConfig


class Chat:
    """Answers go to stdout as they come; the sign that it is your turn goes to stderr, on a terminal only."""

    def __init__(self, config: ChatConfig) -> None:
        self.config = config

    def run(self, payload: Path, prompt: str | None) -> None:
        """Answer `prompt` and return; without one, answer each line of stdin, within one conversation.

        Raises `RecipeError` where the model's tokenizer has no chat template.
        """
        logging.disable_progress_bar()
        renderer = Renderer(AutoTokenizer.from_pretrained(payload, local_files_only=True))
        loaded: Any = AutoModelForCausalLM.from_pretrained(payload, dtype="auto", local_files_only=True)
        model = loaded.to(device(ExecutionConfig(device=self.config.device))).eval()
        generator = torch.Generator().manual_seed(self.config.seed)
        messages = [{"role": "system", "content": self.config.system}] if self.config.system else []
        for question in self._questions(prompt):
            messages.append({"role": "user", "content": question})
            answer = ""
            for piece in stream(
                model,
                renderer,
                messages,
                limit=self.config.max_new_tokens,
                temperature=self.config.temperature,
                generator=generator,
            ):
                print(piece, end="", flush=True)
                answer += piece
            print()
            messages.append({"role": "assistant", "content": answer})

    def _questions(self, prompt: str | None) -> Iterator[str]:
        if prompt is not None:
            yield prompt
            return
        while True:
            if sys.stdin.isatty():
                print("> ", end="", file=sys.stderr, flush=True)
            line = sys.stdin.readline()
            if not line:
                return
            if line.strip():
                yield line.rstrip("\n")
