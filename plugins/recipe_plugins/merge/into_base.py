"""Adapters into the weights of their base, and the proof that nothing was lost.

The proof has two parts. Each weight that was written is read back and checked (`checking`), whatever the model's size.
And three models are compared, where one fits into memory: the base, base with adapter, and the result. That fails where
the adapter moves nothing, since then nothing is proved, and where the result is further from base with adapter than the
recipe allows. Which of the two ran, and why not the other, is in the manifest. The adapter stays where it is.

An adapter that was trained on 4 bits never saw the original weights. It is added to them and to the dequantised ones,
and the better result is kept and judged by the loss of held-out answers where there is a corpus, else by logits
(`judging`).
"""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from recipe_plugins.adapters.saving import load_adapted, quantisation_of
from recipe_plugins.adapters.targets import every_table
from recipe_plugins.merge.changes import Change, other_settings
from recipe_plugins.merge.checking import Checked, check_weights
from recipe_plugins.merge.config import MergeConfig
from recipe_plugins.merge.gate import Seen, context_of, heldout, look, not_compared, probes, with_model
from recipe_plugins.merge.judging import Candidate, Judge, Reference, facts_of, table_of
from recipe_plugins.merge.parts import DTYPES as STORED
from recipe_plugins.merge.parts import slices
from recipe_plugins.merge.rest import write_card, write_rest
from recipe_plugins.merge.several import Summed, Weighted, check_adapters, load_several
from recipe_plugins.merge.streaming import Dequantised, Resized, merge
from recipe_plugins.training.conversations import Renderer
from recipe_plugins.training.estimate import shape_of_folder
from recipe_plugins.training.generation import stops
from recipe_plugins.training.loading import DTYPES, SHARD, load_model, load_skeleton, load_tokenizer
from recipe_plugins.training.machine import device
from recipe_plugins.training.resizing import entries, rows_for
from recipe_plugins.training.weights import equal
from recipe_runner import Adapter, Artifact, Model, RecipeError, Ref, StageContext

EXACT = 1e-3
"""The share of an adapter's change that fp32 may take: next to nothing."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A model's tensors: of embedding and head, whether these are one, and of the layers that may be in 4 bits."""

    tables: frozenset[str]
    tied: bool
    linear: frozenset[str]


class AdapterMerge:
    """One run of the stage, for adapters."""

    def __init__(self, ctx: StageContext, config: MergeConfig) -> None:
        assert config.model is not None
        self.ctx, self.config = ctx, config
        self.base, self.adapters = ctx.open(config.model), _opened(ctx, config)
        check_adapters(ctx, self.base, self.adapters)
        self.first = next(iter(self.adapters.values())).adapter  # its tokeniser and its base's storage are those of all
        self.quantisation = quantisation_of(self.first)
        self.tokenizer = load_tokenizer(ctx, self.first)
        self.renderer = Renderer(self.tokenizer) if self.tokenizer.chat_template else None
        self.frame = frame_of(ctx, self.base)
        other = any(other_settings(part.adapter.payload) for part in self.adapters.values())
        self.changes: Mapping[str, Change] | None = None if other else Summed(self.adapters)  # None: PEFT merges
        self.fp32 = dtype_of(self.base.payload) == "float32"

    def run(self) -> None:
        """Look at base and adapter, merge, check what was written, compare, keep the best."""
        bases = self._bases()
        skipped = self._not_compared(bases)
        judge = None if skipped else self._judge()
        reference = judge.reference if judge else None
        candidates = [self._candidate(name, reference) for name in bases]
        best = judge.best(candidates) if judge else candidates[0]
        self._check_weights(best)
        gate = judge.check(best) if judge else {"judged_by": "weights", "because": skipped, "passed": True}
        for path in best.folder.iterdir():
            path.replace(self.ctx.payload / path.name)
        ends = stops(self.renderer) if self.renderer else ()
        write_rest(self.base.payload, self.ctx.payload, self.tokenizer, ends)
        self._tell(facts_of(judge, candidates, best, gate, skipped), table_of(reference, candidates, best))

    def _bases(self) -> list[str]:
        """The weights that the adapter is added to, to see which is better."""
        wanted = self.config.base
        if wanted == "dequantised" and not self.quantisation:
            raise RecipeError("base: dequantised is for an adapter that was trained on 4 bits, which this one was not")
        if wanted != "auto":
            return [wanted]
        return ["original", "dequantised"] if self.quantisation else ["original"]

    def _not_compared(self, bases: list[str]) -> str:
        """Why whole models are not compared; empty where they are.

        Raises `RecipeError` where that cannot be left out.
        """
        skipped = not_compared(self.config, self.base.payload)
        if skipped and self.changes is None:
            raise RecipeError(
                f"only PEFT knows how to merge this adapter, which it does in memory: {skipped}",
                next="free memory, or set `gate: logits` to try it all the same",
            )
        if skipped and len(bases) > 1:
            raise RecipeError(
                f"which base is the better one is seen by comparing whole models: {skipped}",
                next="name it: `base: dequantised` is what the adapter was trained on, `base: original` has more bits",
            )
        if skipped and self.config.gate == "auto":
            self.ctx.warn(f"logits were not compared: {skipped}; each weight that was written is checked")
        return skipped

    def _judge(self) -> Judge:
        exact = self.config.precision == "fp32" and not self.quantisation and self.fp32
        return Judge(self.config, self._reference(), exact=exact, quantised=bool(self.quantisation))

    def _reference(self) -> Reference:
        config = self.config
        records = heldout(self.ctx, config)
        seed, context = self.ctx.seed("probes") % 2**32, context_of(self.base.payload)
        material = probes(self.renderer, len(self.tokenizer), records, seed, context)

        def use(model: Any) -> Reference:
            adapted = look(model, material)
            with model.disable_adapter():
                return Reference(material, look(model, material), adapted)

        where, dtype = device(config.execution), DTYPES[config.precision]
        found: Reference = with_model(
            lambda: load_several(self.ctx, self.adapters, self.base, device=where, dtype=dtype), use
        )
        if found.effect < config.min_effect:
            raise RecipeError(
                f"the adapter moves logits by {found.effect:.2g} at most, less than min_effect: {config.min_effect:g}",
                next="train it longer or at a higher rate; a merge of it would prove nothing",
            )
        return found

    def _candidate(self, name: str, reference: Reference | None) -> Candidate:
        folder = self.ctx.work / name
        shutil.rmtree(folder, ignore_errors=True)
        checked = self._merged(name, folder)
        if reference is None:
            return Candidate(name, folder, None, None, checked)
        where, dtype = device(self.config.execution), DTYPES[self.config.precision]
        seen: Seen = with_model(
            lambda: load_model(self.ctx, Model(folder, "", {}), dtype=dtype).to(where).eval(),  # type: ignore[arg-type]
            lambda model: look(model, reference.probes),
        )
        return Candidate(name, folder, seen.difference(reference.seen), seen.loss, checked)

    def _merged(self, name: str, folder: Path) -> Checked | None:
        """Write a merged model to `folder`; what its weights were found to be, unless PEFT merged them."""
        if self.changes is None:
            merge_in_memory(self.ctx, self.base, self.first, folder)
            return None
        restored = None
        if name == "dequantised" and self.quantisation:
            dtype = getattr(torch, str(self.first.facts["base_dtype"]))
            restored = Dequantised(self.frame.linear, self.quantisation, dtype)
        resized = _resized(self.ctx, self.base, self.first, self.frame.tables)
        tied = self.frame.tables if self.frame.tied else ()
        payload, block = self.base.payload, self.config.block
        merge(payload, folder, self.changes, restored=restored, block=block, resized=resized, tied=tied)
        _write_config(payload, folder, resized)
        return check_weights(payload, folder, self.adapters, restored=restored, resized=resized, tied=tied)

    def _check_weights(self, best: Candidate) -> None:
        """Raise `RecipeError` where rounding took more of the change than the recipe allows."""
        lost = EXACT if self.fp32 else self.config.relative_tolerance
        if best.weights is not None and not abs(1 - best.weights.kept) <= lost:
            raise RecipeError(
                f"{best.weights.kept:.1%} of what the adapter changes is left in {dtype_of(self.base.payload)}, the "
                "dtype of its base: the rest is smaller than the step from one number to the next",
                next="use the adapter beside its base, train it further, or raise relative_tolerance",
            )

    def _tell(self, facts: dict[str, Any], table: dict[str, Any]) -> None:
        """Note what was measured, and write the card."""
        facts = {"trained_on_4_bits": bool(self.quantisation), **facts}
        if self.config.adapters:
            facts["adapters"] = {name: part.weight for name, part in self.adapters.items()}
        shape = shape_of_folder(self.ctx.payload)
        vocab_size, known = len(self.tokenizer), shape.facts() if shape else None
        self.ctx.note(merge=facts, vocab_size=vocab_size, shape=known, tables=[table])
        told = {name: value for name, value in facts.items() if name not in ("candidates", "weights", "gate")}
        told = {**told, **facts["gate"]}
        told = {name: value for name, value in told.items() if value is not None}
        inputs = {"base": self.base, **{name: part.adapter for name, part in self.adapters.items()}}
        title = "adapters merged into their base" if self.config.adapters else "an adapter merged into its base"
        write_card(self.ctx.folder, title, inputs, told)


def _opened(ctx: StageContext, config: MergeConfig) -> dict[str, Weighted]:
    """What is merged, by name; one without a name is `adapter`."""
    refs: list[tuple[str, Ref, float | dict[str, float]]] = [
        (name, part.adapter, part.weight) for name, part in config.adapters.items()
    ]
    if config.adapter is not None:
        refs = [("adapter", config.adapter, 1.0)]
    found: dict[str, Weighted] = {}
    for name, ref, weight in refs:
        adapter = ctx.open(ref)
        assert isinstance(adapter, Adapter)
        found[name] = Weighted(adapter, weight)
    return found


def frame_of(ctx: StageContext, artifact: Artifact) -> Frame:
    """Of a model that is not loaded."""
    model: Any = load_skeleton(ctx, artifact)
    tables, head = every_table(model), model.get_output_embeddings()
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head]
    tensors = (frozenset(f"{name}.weight" for name in names) for names in (tables, linear))
    one, inner = tensors
    return Frame(one, bool(model.config.tie_word_embeddings) and _one_table(artifact.payload, one), inner)


def _one_table(payload: Path, tables: frozenset[str]) -> bool:
    """Whether embedding and head, if both are stored, are equal: only then are they loaded as one."""
    with ExitStack() as stack:
        stored = [part for name, part in slices(payload, stack).items() if name in tables]
        return len(stored) < 2 or equal(*stored)


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
    """The dtype, as torch names it, that most weights of a model are stored in, whatever its config says."""
    sizes: Counter[str] = Counter()
    with ExitStack() as stack:
        for part in slices(payload, stack).values():
            sizes[part.get_dtype()] += math.prod(part.get_shape())
    kind = sizes.most_common(1)[0][0]
    if kind not in STORED:
        raise RecipeError(f"the weights in {payload} are stored as {kind}", next=f"only {', '.join(STORED)} are merged")
    return str(STORED[kind]).removeprefix("torch.")
