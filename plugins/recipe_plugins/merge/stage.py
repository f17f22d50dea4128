"""The stage `merge`: an adapter into the weights of its base, and the proof that nothing was lost.

The gate compares three models: the base, base with adapter, and the result. It fails where the adapter moves nothing,
since then nothing is proved, and where the result is further from base with adapter than the recipe allows. The adapter
stays where it is.

An adapter that was trained on 4 bits never saw the original weights. It is added to them and to the dequantised ones,
and the closer result is kept: by the loss of held-out answers where there is a corpus, else by logits.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from recipe_plugins.adapters.saving import load_adapted, quantisation_of
from recipe_plugins.adapters.targets import every_table
from recipe_plugins.merge.changes import Change, other_settings
from recipe_plugins.merge.config import MergeConfig
from recipe_plugins.merge.gate import Probes, Seen, heldout, look, probes, with_model
from recipe_plugins.merge.models import merge_models
from recipe_plugins.merge.rest import write_card, write_rest
from recipe_plugins.merge.several import Adapters, Weighted, changes_of, check_adapters, load_several
from recipe_plugins.merge.streaming import Dequantised, Resized, merge
from recipe_plugins.training.conversations import Renderer
from recipe_plugins.training.estimate import shape_of_folder
from recipe_plugins.training.generation import stops
from recipe_plugins.training.loading import DTYPES, SHARD, load_model, load_tokenizer
from recipe_plugins.training.machine import device, set_threads
from recipe_plugins.training.quantised import layers
from recipe_plugins.training.resizing import entries, rows_for
from recipe_runner import Adapter, Artifact, Model, RecipeError, Ref, StageContext


@dataclass(frozen=True, slots=True)
class Reference:
    """The base with its adapter: what it computes, by how much the adapter moves it, which tensors were in 4 bits.

    `tables` are the tensors of the embedding and the head, `tied` whether they are one.
    """

    seen: Seen
    effect: float
    quantised: frozenset[str]
    tables: frozenset[str]
    tied: bool


@dataclass(frozen=True, slots=True)
class Candidate:
    """A merged model in `folder`, added to the `base` weights of that name."""

    base: str
    folder: Path
    difference: float
    loss: float | None


class MergeStage:
    """See the module's text."""

    def __init__(self, config: MergeConfig) -> None:
        self.config = config

    def run(self, ctx: StageContext) -> None:
        """Merge models by a method; or compare base and adapter, merge, compare the result, keep the best."""
        if ctx.rank:
            return
        set_threads(self.config.execution)
        if self.config.method is not None:
            merge_models(ctx, self.config, self.config.method)
            return
        assert self.config.model is not None
        base, adapters = ctx.open(self.config.model), self._adapters(ctx)
        check_adapters(ctx, base, adapters)
        changes = (
            None if any(other_settings(part.adapter.payload) for part in adapters.values()) else changes_of(adapters)
        )
        adapter = next(iter(adapters.values())).adapter  # how the base was stored, and the tokeniser, are those of all
        tokenizer = load_tokenizer(ctx, adapter)
        renderer = Renderer(tokenizer) if tokenizer.chat_template else None
        material = probes(renderer, len(tokenizer), heldout(ctx, self.config), ctx.seed("probes") % 2**32)
        reference = self._reference(ctx, base, adapters, material)
        candidates = [
            self._candidate(ctx, name, base, adapter, changes, material, reference) for name in self._bases(adapter)
        ]
        best = min(candidates, key=lambda c: c.difference if c.loss is None else c.loss)
        facts = _facts(reference, candidates, best, bool(quantisation_of(adapter))) | self._weights(adapters)
        exact = self.config.precision == "fp32" and not quantisation_of(adapter) and dtype_of(base.payload) == "float32"
        self._check(reference, best, exact=exact)
        for path in best.folder.iterdir():
            path.replace(ctx.payload / path.name)
        write_rest(base.payload, ctx.payload, tokenizer, stops(renderer) if renderer else ())
        shape = shape_of_folder(ctx.payload)
        ctx.note(
            merge=facts,
            vocab_size=len(tokenizer),
            shape=shape.facts() if shape else None,
            tables=[_table(reference, candidates, best)],
        )
        told = {name: value for name, value in facts.items() if name != "candidates" and value is not None}
        inputs = {"base": base, **{name: part.adapter for name, part in adapters.items()}}
        title = "adapters merged into their base" if self.config.adapters else "an adapter merged into its base"
        write_card(ctx.folder, title, inputs, told)

    def _adapters(self, ctx: StageContext) -> dict[str, Weighted]:
        """What is merged, by name; one without a name is `adapter`."""
        found: dict[str, Weighted] = {}
        for name, ref, weight in self._refs():
            adapter = ctx.open(ref)
            assert isinstance(adapter, Adapter)
            found[name] = Weighted(adapter, weight)
        return found

    def _refs(self) -> list[tuple[str, Ref, float | dict[str, float]]]:
        if self.config.adapter is not None:
            return [("adapter", self.config.adapter, 1.0)]
        return [(name, part.adapter, part.weight) for name, part in self.config.adapters.items()]

    def _weights(self, adapters: Adapters) -> dict[str, Any]:
        """The weights of several adapters, for the manifest and the card."""
        return {"weights": {name: part.weight for name, part in adapters.items()}} if self.config.adapters else {}

    def _bases(self, adapter: Adapter) -> list[str]:
        """The weights that the adapter is added to, to see which is better."""
        quantised, wanted = quantisation_of(adapter), self.config.base
        if wanted == "dequantised" and not quantised:
            raise RecipeError("base: dequantised is for an adapter that was trained on 4 bits, which this one was not")
        if wanted != "auto":
            return [wanted]
        return ["original", "dequantised"] if quantised else ["original"]

    def _reference(self, ctx: StageContext, base: Artifact, adapters: Adapters, material: Probes) -> Reference:
        quantised = any(quantisation_of(part.adapter) for part in adapters.values())

        def use(model: Any) -> Reference:
            names = layers(model.get_base_model()) if quantised else ()
            adapted = look(model, material)
            with model.disable_adapter():
                plain = look(model, material)
            tensors = frozenset(f"{name.removesuffix('.base_layer').removesuffix('.layer')}.weight" for name in names)
            inner = model.get_base_model()
            tables = frozenset(f"{name}.weight" for name in every_table(inner))
            return Reference(
                adapted, adapted.difference(plain), tensors, tables, bool(inner.config.tie_word_embeddings)
            )

        where, dtype = device(self.config.execution), DTYPES[self.config.precision]
        found: Reference = with_model(lambda: load_several(ctx, adapters, base, device=where, dtype=dtype), use)
        if found.effect < self.config.min_effect:
            raise RecipeError(
                f"the adapter moves logits by {found.effect:.2g} at most, less than min_effect: "
                f"{self.config.min_effect:g}",
                next="train it longer or at a higher rate; a merge of it would prove nothing",
            )
        return found

    def _candidate(
        self,
        ctx: StageContext,
        name: str,
        base: Artifact,
        adapter: Adapter,
        changes: Mapping[str, Change] | None,
        material: Probes,
        reference: Reference,
    ) -> Candidate:
        folder, quantisation = ctx.work / name, quantisation_of(adapter)
        restored = None
        if name == "dequantised" and quantisation:
            restored = Dequantised(reference.quantised, quantisation, getattr(torch, str(adapter.facts["base_dtype"])))
        shutil.rmtree(folder, ignore_errors=True)
        if changes is None:
            merge_in_memory(ctx, base, adapter, folder)
        else:
            resized = _resized(ctx, base, adapter, reference.tables)
            merge(
                base.payload,
                folder,
                changes,
                restored=restored,
                block=self.config.block,
                resized=resized,
                tied=reference.tables if reference.tied else (),
            )
            _write_config(base.payload, folder, resized)
        where, dtype = device(self.config.execution), DTYPES[self.config.precision]
        merged = Model(folder, "", {})
        seen: Seen = with_model(
            lambda: load_model(ctx, merged, dtype=dtype).to(where).eval(),  # type: ignore[arg-type]
            lambda model: look(model, material),
        )
        return Candidate(name, folder, seen.difference(reference.seen), seen.loss)

    def _check(self, reference: Reference, best: Candidate, *, exact: bool) -> None:
        relative = self.config.relative_tolerance * reference.effect
        name, limit = ("tolerance", self.config.tolerance) if exact else ("relative_tolerance", relative)
        if not best.difference <= limit:
            raise RecipeError(
                f"the merged model's logits differ from those of base and adapter by {best.difference:.2g}, more than "
                f"{limit:.2g} ({name}); the adapter itself moves them by {reference.effect:.2g}",
                next=f"the adapter is kept; raise {name} only if you know why they differ",
            )


def merge_in_memory(ctx: StageContext, base: Artifact, adapter: Adapter, folder: Path) -> None:
    """Let PEFT merge what it alone knows how to, in fp32 on the CPU, and save it in the base's dtype.

    Takes memory for the whole model. Raises `RecipeError` for an adapter that was trained on 4 bits.
    """
    if quantisation_of(adapter):
        shown = ", ".join(f"{name}: {value}" for name, value in other_settings(adapter.payload).items())
        raise RecipeError(f"an adapter trained on 4 bits cannot be merged with these settings: {shown}")
    model: Any = load_adapted(ctx, adapter, base, device=torch.device("cpu"))
    try:
        merged = model.merge_and_unload()
    except (ValueError, NotImplementedError, AttributeError) as error:
        raise RecipeError(f"PEFT cannot merge this adapter: {error}", next="use it beside its base") from error
    kept = dtype_of(base.payload)
    merged.to(getattr(torch, kept)).save_pretrained(folder, max_shard_size=SHARD)


def _resized(ctx: StageContext, base: Artifact, adapter: Adapter, tables: frozenset[str]) -> Resized | None:
    """What happened to the base's tables before the adapter was trained: nothing, if it brought no tokens."""
    seen, needed = entries(load_tokenizer(ctx, base)), entries(load_tokenizer(ctx, adapter))
    if needed <= seen:
        return None
    return Resized(tables, seen, rows_for(needed, _config(base.payload)["vocab_size"]))


def _write_config(base: Path, folder: Path, resized: Resized | None) -> None:
    if resized is None:
        shutil.copyfile(base / "config.json", folder / "config.json")
        return
    keys = {**_config(base), "vocab_size": resized.rows}
    (folder / "config.json").write_text(json.dumps(keys, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _config(payload: Path) -> dict[str, Any]:
    keys: dict[str, Any] = json.loads((payload / "config.json").read_text(encoding="utf-8"))
    return keys


def dtype_of(payload: Path) -> str:
    """The dtype, as torch names it, that the weights of a model are saved in; fp32 where its config does not say."""
    keys = _config(payload)
    return str(keys.get("dtype") or keys.get("torch_dtype") or "float32")


def _facts(reference: Reference, candidates: list[Candidate], best: Candidate, quantised: bool) -> dict[str, Any]:
    """What was measured, and what decided."""
    decided = "the only one" if len(candidates) == 1 else "logits" if best.loss is None else "loss of held-out answers"
    measured = [{k: v for k, v in asdict(candidate).items() if k != "folder"} for candidate in candidates]
    return {
        "base": best.base,
        "decided_by": decided,
        "trained_on_4_bits": quantised,
        "adapter_effect": reference.effect,
        "adapter_loss": reference.seen.loss,
        "difference": best.difference,
        "candidates": measured,
    }


def _table(reference: Reference, candidates: list[Candidate], best: Candidate) -> dict[str, Any]:
    """What each of the merged models is worth beside base and adapter, for people; the first one is kept."""
    ordered = sorted(candidates, key=lambda candidate: candidate is not best)
    shown = [("base and adapter", 0.0, reference.seen.loss)]
    shown += [(f"into the {part.base} weights", part.difference, part.loss) for part in ordered]
    return {
        "title": f"merged; the adapter moves logits by {reference.effect:.3g}",
        "columns": ["model", "logits apart", "held-out answers, nats a token"],
        "rows": [
            [name, f"{apart:.3g}", "not measured" if loss is None else f"{loss:.4f}"] for name, apart, loss in shown
        ],
    }
