"""The stage `export`: a model as one GGUF file, written a tensor at a time and read back.

Guarantees: every weight of the model is in the file (a tied head once), or the stage fails; what the reader of the
`gguf` package finds there is, to the bit, the model's weights in the dtype that was asked for, and the metadata that
was written. Weights that were quantised are, read back, within what their type may lose; how much they lost is told.
Equal models give equal bytes.

Limits: byte-level BPE tokenisers; of the quantised types those that are a function of 32 weights, as more need
llama.cpp's own tool. That llama.cpp itself runs it is not tried here; transformers reads the same model back (tests).
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from recipe_plugins.export.config import ExportConfig
from recipe_plugins.export.experts import gathered
from recipe_plugins.export.families import Family, family_of
from recipe_plugins.export.quantised import BLOCK, TYPES, Loss
from recipe_plugins.export.vocabulary import vocabulary
from recipe_plugins.training.estimate import experts_of
from recipe_plugins.training.loading import load_tokenizer
from recipe_plugins.training.weights import shards, tied_copy
from recipe_runner import RecipeError, StageContext

FILE = "model.gguf"
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
TABLES = ("token_embd.weight", "output.weight")
"""Embedding and head, which lose more by few bits than layers do; llama.cpp keeps more of them, too."""

ROUTER = "ffn_gate_inp.weight"
"""It decides which experts a token goes through: little, and always f32 in llama.cpp's own files."""

CONSTANT = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")
"""What old versions of transformers saved beside weights: masks and rotary frequencies, which every reader makes."""

FILE_TYPES = {"f32": 0, "f16": 1, "bf16": 32, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9}
"""GGUF's numbers of what most tensors are stored in (`general.file_type`)."""


class ExportStage:
    """See the module's text."""

    def __init__(self, config: ExportConfig) -> None:
        self.config = config

    def run(self, ctx: StageContext) -> None:
        """Gather metadata, write, read back."""
        if ctx.rank:
            return
        gguf = library()
        model = ctx.open(self.config.model)
        keys = json.loads((model.payload / "config.json").read_text(encoding="utf-8"))
        family = family_of(keys)
        words = metadata(ctx, self.config, model, keys, family)
        path = ctx.payload / FILE
        with ExitStack() as stack:
            tensors = Tensors(model.payload, keys, family, self.config.dtype, stack)
            _write(gguf, path, family, words, tensors)
            loss = _check(gguf, path, words, tensors)
        facts = {"file": FILE, "architecture": family.name, "tensors": len(tensors.names), "read_back": "equal"}
        if self.config.dtype in TYPES:
            facts |= {"stored": dict(Counter(tensors.kinds.values())), "relative_error": loss.relative}
        ctx.note(export=facts)


def library() -> Any:
    """The package `gguf`. Raises `RecipeError`, naming the extra, where it is not installed."""
    try:
        import gguf
    except ImportError as error:
        raise RecipeError(
            "exporting needs the package gguf, which is not installed", next="pip install 'recipe-runner[gguf]'"
        ) from error
    return gguf


def metadata(
    ctx: StageContext, config: ExportConfig, model: Any, keys: Mapping[str, Any], family: Family
) -> dict[str, Any]:
    """GGUF's keys, without `general.architecture`, which the writer adds."""
    tokenizer = load_tokenizer(ctx, model)
    words: dict[str, Any] = {"general.file_type": FILE_TYPES[config.dtype]}
    if config.dtype in TYPES:
        words["general.quantization_version"] = library().GGML_QUANT_VERSION
    words |= {f"{family.name}.{key}": value for key, value in family.settings(keys).items()}
    words |= {f"tokenizer.ggml.{key}": value for key, value in vocabulary(model.payload, keys["vocab_size"]).items()}
    marks = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "padding": tokenizer.pad_token_id}
    words |= {f"tokenizer.ggml.{name}_token_id": number for name, number in marks.items() if number is not None}
    words |= {f"tokenizer.ggml.add_{name}_token": added for name, added in _added(tokenizer).items()}
    end = _end_of_turn(model.payload, tokenizer.eos_token_id)
    if end is not None:
        words["tokenizer.ggml.eot_token_id"] = end
    if isinstance(tokenizer.chat_template, str):
        words["tokenizer.chat_template"] = tokenizer.chat_template
    return words


def _added(tokenizer: Any) -> dict[str, bool]:
    """Whether the tokenizer puts its token before or after a text; where a template did, llama.cpp does not again."""
    ids = tokenizer("a")["input_ids"]
    return {"bos": ids[0] == tokenizer.bos_token_id, "eos": ids[-1] == tokenizer.eos_token_id}


def _end_of_turn(folder: Path, eos: int | None) -> int | None:
    """The other token that ends an answer, if the generation config knows one."""
    path = folder / "generation_config.json"
    found = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.is_file() else None
    others = [number for number in (found if isinstance(found, list) else [found]) if number not in (None, eos)]
    return others[0] if others else None


class Tensors:
    """A model's tensors as GGUF has them, one at a time, by GGUF's names."""

    def __init__(self, folder: Path, keys: Mapping[str, Any], family: Family, dtype: str, stack: ExitStack) -> None:
        self.keys, self.family, self.dtype = keys, family, dtype
        self.kinds: dict[str, str] = {}  # what each is stored as, known once it was read
        files = [stack.enter_context(safe_open(path, framework="pt")) for path in shards(folder)]
        self._file = {name: file for file in files for name in sorted(file.keys()) if not name.endswith(CONSTANT)}
        copy = tied_copy({name: file.get_slice(name) for name, file in self._file.items()}, keys)
        self._sources = gathered((name for name in self._file if name not in copy), experts_of(keys))
        gguf = library()
        architecture = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == family.name)
        known = gguf.get_tensor_name_map(architecture, family.layers(keys))
        self.names = {self._named(known, name): name for name in self._sources}

    def _named(self, known: Any, name: str) -> str:
        found = known.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise RecipeError(f"GGUF has no place for the tensor {name} of a {self.family.name}")
        return str(found)

    def tensor(self, name: str) -> torch.Tensor:
        """By GGUF's name; fp32 what is a vector or to be quantised. Raises `RecipeError` for a number too large."""
        own = self.names[name]
        read = self._sources[own].read(lambda part: self._file[part].get_tensor(part))
        found = self.family.changed(self.keys, own, read)
        kind = self.kinds[name] = self._kind(name, found)
        cast = found.to(DTYPES.get(kind, torch.float32)).contiguous()
        if not cast.isfinite().all():
            raise RecipeError(f"{own} has numbers that {kind} cannot hold", next="export it as bf16 or f32")
        return cast

    def _kind(self, name: str, tensor: torch.Tensor) -> str:
        if tensor.ndim < 2 or name.endswith(ROUTER):
            return "f32"
        if self.dtype not in TYPES:
            return self.dtype
        if tensor.shape[-1] % BLOCK:
            return "f16"
        return "q8_0" if name in TABLES else self.dtype

    def array(self, gguf: Any, name: str) -> Any:
        """A numpy array of the bytes that are written; numpy has no bfloat16."""
        tensor = self.tensor(name)
        if self.kinds[name] in TYPES:
            return gguf.quants.quantize(tensor.numpy(), raw_type(gguf, self.kinds[name]))
        return tensor.view(torch.uint8).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self.names))


def raw_type(gguf: Any, kind: str) -> Any:
    """The library's name of a dtype."""
    return gguf.GGMLQuantizationType[kind.upper()]


def _write(gguf: Any, path: Path, family: Family, words: Mapping[str, Any], tensors: Tensors) -> None:
    writer = gguf.GGUFWriter(path, family.name)
    for key, value in words.items():
        _add(gguf, writer, key, value)
    for name in tensors:
        shape, raw = tuple(tensors.tensor(name).shape), raw_type(gguf, tensors.kinds[name])
        sizes = gguf.quant_shape_to_byte_shape(shape, raw)
        writer.add_tensor_info(name, sizes, np.dtype(np.uint8), math.prod(sizes), raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name in tensors:
        writer.write_tensor_data(tensors.array(gguf, name))
    writer.close()


def _add(gguf: Any, writer: Any, key: str, value: Any) -> None:
    kinds = gguf.GGUFValueType
    if isinstance(value, list):
        writer.add_key_value(
            key, value, kinds.ARRAY, sub_type=kinds.STRING if isinstance(value[0], str) else kinds.INT32
        )
        return
    kind = {bool: kinds.BOOL, int: kinds.UINT32, float: kinds.FLOAT32, str: kinds.STRING}[type(value)]
    writer.add_key_value(key, value, kind)


def _check(gguf: Any, path: Path, words: Mapping[str, Any], tensors: Tensors) -> Loss:
    """What quantising lost. Raises `RecipeError` unless the file holds the metadata and the weights."""
    reader = gguf.GGUFReader(path)
    for key, value in words.items():
        field = reader.get_field(key)
        found = None if field is None else field.contents()
        same = (
            abs(found - value) <= 1e-6 * abs(value)
            if isinstance(value, float) and found is not None
            else found == value
        )
        if not same:
            raise RecipeError(f"{path.name}: {key} was not written as it is")
    there = {tensor.name: tensor for tensor in reader.tensors}
    if sorted(there) != sorted(tensors.names):
        raise RecipeError(f"{path.name} has {len(there)} tensors, not the {len(tensors.names)} of the model")
    loss = Loss()
    for name in tensors:
        wanted, found = tensors.tensor(name), there[name]
        kind = tensors.kinds[name]
        sizes = [int(size) for size in reversed(found.shape)]
        if sizes != list(wanted.shape) or found.data.tobytes() != tensors.array(gguf, name).tobytes():
            raise RecipeError(f"{path.name}: {name} was not written as it is")
        if kind in TYPES:
            read = torch.from_numpy(gguf.quants.dequantize(found.data, found.tensor_type).reshape(sizes))
            if not loss.add(kind, wanted, read):
                raise RecipeError(f"{path.name}: {name} lost more than {kind} may", next="export it as f16 or bf16")
    return loss
