"""`synthesise`: asked once for each document, by a server or a checkpoint; every document says what made it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from recipe_runner import RecipeError
from recipe_runner.identity import folder_files
from recipe_runner.testing import make
from recipe_runner.testing.local import slot

TEMPLATES = {"story": "A story on {thing}: ", "list": "{thing} has these parts: "}


class Served:
    """A server that answers by `speak(prompt, seed)`; `fail` holds what it answers instead, by number of the call."""

    def __init__(self, speak: Any) -> None:
        self.calls: list[dict] = []
        self.fail: dict[int, int] = {}
        self.keys: set[str | None] = set()
        served = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                served.calls.append(body)
                served.keys.add(self.headers["Authorization"])
                status = served.fail.get(len(served.calls), 200)
                prompt = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
                found = served._answer(self.path, speak(prompt, body["seed"])) if status == 200 else {"error": "no"}
                data = json.dumps(found).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @staticmethod
    def _answer(path: str, said: tuple[str, str]) -> dict:
        text, finish = said
        content = (
            {"message": {"role": "assistant", "content": text}}
            if path.endswith("/chat/completions")
            else {"text": text}
        )
        return {"model": "tiny-1", "choices": [{**content, "finish_reason": finish}]}

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def served() -> Iterator[Served]:
    found = Served(lambda prompt, seed: (f"{prompt} {seed} {'and more ' * 5}", "stop"))
    yield found
    found.close()


@pytest.fixture
def source(tmp_path, served) -> dict:
    rows = [{"id": name, "thing": f"a {name}"} for name in ("house", "tree", "river", "boat", "road")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "use": "synthesise", "templates": TEMPLATES, "rows": str(tmp_path / "rows.jsonl"), "requests": 25,
        "server": served.url, "model": "tiny", "cache": str(tmp_path / "cache"), "parallel": 3,
    }  # fmt: skip


def curate(source: dict, folder: Path, **more):
    return make("curation", {"sources": {"made": source}, "heldout": 0, **more}, folder)


def test_every_document_says_what_made_it_and_nothing_is_asked_for_twice(source, served, tmp_path):
    first = curate(source, tmp_path / "a")
    records = list(first.read("made"))
    assert len(records) == len(served.calls) == 25
    asked = {(call["messages"][0]["content"], call["seed"]) for call in served.calls}
    assert {(record.meta["prompt"], record.meta["seed"]) for record in records} == asked
    assert len(asked) == 25  # each round over the ten pairs samples anew
    for record in records:
        assert record.meta["model"] == "tiny-1"
        assert record.meta["prompt"] == TEMPLATES[record.meta["template"]].replace(
            "{thing}", f"a {record.meta['group']}"
        )
        assert record.text.startswith(f"{record.meta['prompt']} {record.meta['seed']}")
    again = curate({**source, "parallel": 1}, tmp_path / "b", execution={"workers": 2})
    assert len(served.calls) == 25
    assert folder_files(again.payload) == folder_files(first.payload)


def test_more_requests_ask_for_what_is_new(source, served, tmp_path):
    few = {record.id: record.text for record in curate({**source, "requests": 8}, tmp_path / "a").read("made")}
    more = {record.id: record.text for record in curate({**source, "requests": 20}, tmp_path / "b").read("made")}
    assert len(served.calls) == 20
    assert few.items() <= more.items()


def test_refused_half_way_it_says_so_and_goes_on_from_there(source, served, tmp_path):
    served.fail = {11: 403}
    with pytest.raises(RecipeError, match=r"/v1/chat/completions does not answer \(403 Forbidden: .*no"):
        curate({**source, "parallel": 1}, tmp_path / "a")
    assert len(served.calls) == 11
    assert len(list(curate(source, tmp_path / "a").read("made"))) == 25
    assert len(served.calls) == 26


def test_a_busy_server_is_asked_again_and_a_broken_one_given_up(source, served, tmp_path, monkeypatch):
    monkeypatch.setattr("recipe_plugins.sources.synthesis.models.PATIENCE", 0.01)
    served.fail = {2: 429, 3: 503}
    assert len(list(curate({**source, "parallel": 1}, tmp_path / "a").read("made"))) == 25
    assert len(served.calls) == 27
    gone = {**source, "server": "http://127.0.0.1:9/v1", "attempts": 2}
    with pytest.raises(RecipeError, match="does not answer"):
        curate(gone, tmp_path / "b")


def test_an_answer_that_is_cut_off_or_empty_is_a_bad_row(source, tmp_path):
    served = Served(
        lambda prompt, seed: ("", "stop") if "boat" in prompt else ("half", "length" if "road" in prompt else "stop")
    )
    corpus = curate({**source, "server": served.url, "requests": 10}, tmp_path / "a", max_bad=0.5)
    served.close()
    read = json.loads((corpus.path / "ledger.json").read_text())["domains"]["made"]["read"]
    assert read["bad"] == {"an empty answer": 2, "cut off at max_tokens (512)": 2}
    assert read["documents"] == 6


def test_conversations_and_keys(source, served, tmp_path, monkeypatch):
    chat = {**source, "answer": "messages", "system": "Be kind.", "key": "SYNTHESIS_KEY", "requests": 3}
    with pytest.raises(RecipeError, match="SYNTHESIS_KEY is not set"):
        curate(chat, tmp_path / "a")
    monkeypatch.setenv("SYNTHESIS_KEY", "sesame")
    turns = next(curate(chat, tmp_path / "b").read("made")).messages
    assert [turn["role"] for turn in turns] == ["user", "assistant"]
    assert served.calls[0]["messages"][0] == {"role": "system", "content": "Be kind."}
    assert served.keys == {"Bearer sesame"}
    assert "sesame" not in "".join(file.read_text() for file in (tmp_path / "cache").rglob("*.json"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"checkpoint": "/m"}, "not both or none"),
        ({"model": None}, "belong together"),
        ({"requests": 0}, "greater than or equal to 1"),
        ({"ask": "completion", "system": "x"}, "`system` is for ask: chat"),
    ],
)
def test_a_wrong_config_is_an_error_at_load(source, change, said):
    with pytest.raises(ValidationError, match=said):
        slot("source", {**source, **change})


def test_a_template_that_wants_what_no_row_has_is_an_error(source, tmp_path):
    with pytest.raises(RecipeError, match=r"templates.story wants \{thign\}, and row .* has no such column"):
        curate({**source, "templates": {"story": "On {thign}"}}, tmp_path / "a")


@pytest.mark.slow
def test_the_tiny_model_serves_and_is_loaded_with_the_same_words(source, tiny_base, tmp_path):
    """A server that the model of the fixtures speaks through, and the same model by its path."""
    local = {key: value for key, value in source.items() if key not in ("server", "model")}
    local |= {"checkpoint": str(tiny_base.payload), "requests": 6, "ask": "completion", "max_tokens": 12}
    by_path = slot("source", local).build()
    assert by_path.revision()[1]
    list(rows_of(by_path))

    from recipe_plugins.sources.synthesis.models import Checkpoint

    model = Checkpoint(by_path.config)
    asked = {"system": None, "ask": "completion", "max_tokens": 12, "temperature": 1.0, "top_p": 1.0}

    def speak(prompt: str, seed: int) -> tuple[str, str]:
        answer = model.answer({**asked, "prompt": prompt, "seed": seed})
        return answer["text"], answer["finish"]

    served = Served(speak)
    remote = {**source, "server": served.url, "requests": 6, "ask": "completion", "max_tokens": 12, "parallel": 1}
    by_url = slot("source", remote).build()
    list(rows_of(by_url))
    served.close()
    said: dict[tuple, dict] = {}
    for file in (tmp_path / "cache").rglob("*.json"):
        kept = json.loads(file.read_text())
        said.setdefault(tuple(kept["request"]["who"]), {})[kept["request"]["prompt"], kept["request"]["seed"]] = kept[
            "answer"
        ]
    ours, theirs = ({key: answer["text"] for key, answer in found.items()} for found in said.values())
    assert len(served.calls) == len(ours) == 6
    assert ours == theirs
    assert len(set(ours.values())) > 1


def rows_of(source):
    for piece in source.pieces():
        yield from source.read(piece)
