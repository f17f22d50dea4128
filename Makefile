# make tiny    from raw text to a merged chat model, in five minutes on two CPU cores
# make test    every test
# make check   lint, types, walls
# make bench-curation  curation beside datatrove, rensa and datasketch; CORPUS=file.jsonl for your own text
# make bench-pretrain  the trainer beside a bare PyTorch loop, in speed and memory
# make bench-tokenise  encoding a corpus beside the bare encoder
# make bench-sft       fine-tuning beside TRL's SFTTrainer
# make bench-merge     merging an adapter into 14 GB beside copying them; FOLDER=dir on the disk to measure
# make bench-forgetting  what full tuning and LoRA forget at equal held-out answer loss
# make bench-chars TEXT=file  a character model beside one of nanoGPT's shape, at equal steps
# make bench-anneal  the falling rate and the better mixture, each alone and together
# Each makes .venv first, with the versions of constraints.txt.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help tiny test check bench-curation clean

help:
	@sed -n '/^# Each/q;s/^# //p' Makefile

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

tiny: $(INSTALLED)
	$(BIN)/recipe run recipes/tiny.yaml

test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist loadgroup

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/unit/test_walls.py

bench-curation: $(INSTALLED)
	$(BIN)/python tests/benchmarks/curation/bench.py $(if $(CORPUS),--corpus $(CORPUS))

.PHONY: bench-pretrain
bench-pretrain: $(INSTALLED)
	$(BIN)/python tests/benchmarks/pretrain.py --bf16

.PHONY: bench-tokenise
bench-tokenise: $(INSTALLED)
	$(BIN)/python tests/benchmarks/tokenise.py

.PHONY: bench-sft bench-merge bench-forgetting
bench-sft: $(INSTALLED)
	$(BIN)/python tests/benchmarks/sft.py

bench-merge: $(INSTALLED)
	$(BIN)/python tests/benchmarks/merge.py $(if $(FOLDER),--folder $(FOLDER))

bench-forgetting: $(INSTALLED)
	$(BIN)/python tests/benchmarks/forgetting.py

.PHONY: bench-chars
bench-chars: $(INSTALLED)
	$(BIN)/python tests/benchmarks/chars.py $(TEXT)

.PHONY: bench-anneal
bench-anneal: $(INSTALLED)
	$(BIN)/python tests/benchmarks/anneal.py

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
