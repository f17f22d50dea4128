"""Who answers: a server by URL, or a checkpoint on this machine.

A request is a mapping with `prompt`, `system`, `max_tokens`, `temperature`, `top_p`, `seed` and `ask`; an answer has
`text`, `model` (as the one who answered calls itself) and `finish` (`stop`, or `length` where it was cut off).
"""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any, Protocol

from recipe_plugins.sources.synthesis.config import SynthesiseConfig
from recipe_runner import RecipeError

Request = Mapping[str, Any]
Answer = dict[str, str]
BUSY = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
"""Answers of HTTP after which a request may be made again."""
PATIENCE = 0.5
"""Seconds before the second attempt; each further one waits twice as long."""


class Asked(Protocol):
    """Answers requests, `parallel` at once."""

    parallel: int

    def answer(self, request: Request) -> Answer:
        """Raises `RecipeError` where there is none."""


class Server:
    """`/chat/completions` or `/completions` of an OpenAI-compatible server."""

    def __init__(self, config: SynthesiseConfig) -> None:
        self._config, self.parallel = config, config.parallel

    def answer(self, request: Request) -> Answer:
        """Its first choice."""
        url = f"{self._config.server}/{'chat/completions' if request['ask'] == 'chat' else 'completions'}"
        found = self._posted(url, {"model": self._config.model, **_body(request)})
        try:
            choice = found["choices"][0]
            text = choice["message"]["content"] if request["ask"] == "chat" else choice["text"]
        except (KeyError, IndexError, TypeError):
            raise RecipeError(f"{url} gave no choice: {json.dumps(found)[:200]}", next="check the server") from None
        finish = "length" if choice.get("finish_reason") == "length" else "stop"
        return {"text": text or "", "model": str(found.get("model") or self._config.model), "finish": finish}

    def _posted(self, url: str, body: Mapping[str, Any]) -> dict[str, Any]:
        for attempt in range(1, self._config.attempts + 1):
            try:
                return self._post(url, body)
            except urllib.error.HTTPError as error:
                said = error.read(200).decode("utf-8", "replace")
                problem = f"{error.code} {error.reason}: {said}"
                if error.code not in BUSY:
                    break
            except (OSError, ValueError) as error:  # no connection, a time-out, or no JSON
                problem = str(error)
            if attempt < self._config.attempts:
                time.sleep(PATIENCE * 2 ** (attempt - 1))
        raise RecipeError(
            f"{url} does not answer ({problem})",
            next="check server, model and key; what was answered is kept, and a run goes on from there",
        )

    def _post(self, url: str, body: Mapping[str, Any]) -> dict[str, Any]:
        headers = {"Content-Type": "application/json", **self._authorised()}
        request = urllib.request.Request(url, json.dumps(body).encode(), headers, method="POST")
        with urllib.request.urlopen(request, timeout=self._config.timeout) as response:
            found: dict[str, Any] = json.load(response)
        return found

    def _authorised(self) -> dict[str, str]:
        name = self._config.key
        if name is None:
            return {}
        if not os.environ.get(name):
            raise RecipeError(f"the environment variable {name} is not set", next=f"export {name}=…")
        return {"Authorization": f"Bearer {os.environ[name]}"}


def _body(request: Request) -> dict[str, Any]:
    sampling = {name: request[name] for name in ("max_tokens", "temperature", "top_p", "seed")}
    asked: dict[str, Any] = {"messages": turns(request)} if request["ask"] == "chat" else {"prompt": request["prompt"]}
    return asked | sampling


def turns(request: Request) -> list[dict[str, str]]:
    """The conversation that a prompt begins."""
    system = [{"role": "system", "content": request["system"]}] if request["system"] else []
    return [*system, {"role": "user", "content": request["prompt"]}]


class Checkpoint:
    """A causal language model of transformers, in float32 on the CPU; one prompt at a time, so that no answer depends
    on another."""

    parallel = 1

    def __init__(self, config: SynthesiseConfig) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        assert config.checkpoint is not None  # the config's validator saw to it
        import torch

        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(config.checkpoint, **options)
            model = AutoModelForCausalLM.from_pretrained(config.checkpoint, dtype=torch.float32, **options)
        except (OSError, ValueError) as error:
            what = f"{config.checkpoint} is no checkpoint that transformers can load: {error}"
            raise RecipeError(what, next="give a folder with config.json, weights and tokenizer") from None
        self._model, self._name = model.eval(), os.path.basename(config.checkpoint)

    def answer(self, request: Request) -> Answer:
        """What it samples under the request's seed."""
        import torch

        ids = self._ids(request)
        sampling: dict[str, Any] = {"do_sample": False}
        if request["temperature"]:
            sampling = {"do_sample": True, "temperature": request["temperature"], "top_p": request["top_p"], "top_k": 0}
        with torch.random.fork_rng(devices=[]), torch.inference_mode():  # `generate` knows the global generator only
            torch.manual_seed(request["seed"])
            found = self._model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=request["max_tokens"],
                pad_token_id=self._tokenizer.pad_token_id or 0, **sampling,
            )  # fmt: skip
        new = found[0, ids.shape[1] :]
        cut = len(new) == request["max_tokens"] and not self._ends(int(new[-1]))
        text = str(self._tokenizer.decode(new, skip_special_tokens=True))  # of one answer, not of a batch
        return {"text": text, "model": self._name, "finish": "length" if cut else "stop"}

    def _ids(self, request: Request) -> Any:
        if request["ask"] == "completion":
            return self._tokenizer(request["prompt"], return_tensors="pt").input_ids
        if not self._tokenizer.chat_template:
            raise RecipeError(f"{self._name} has no chat template", next="set ask: completion")
        chat: Any = turns(request)
        return self._tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, return_tensors="pt", return_dict=False
        )

    def _ends(self, token: int) -> bool:
        ends = self._model.generation_config.eos_token_id
        return token in (ends if isinstance(ends, list) else [ends])
