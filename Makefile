# Every target makes .venv first when it is missing or older than the pinned versions, and never asks a question.
#   make demo     synthetic cohort -> finetune -> classify -> demo/index.html
#   make test     the quick tests (make test-slow: the slow ones)
#   make lint     ruff and mypy
#   make pictures the pictures of the documents, from a demo
#   make bench    benchmark tables
#   make torture  crash points, real kills and 500 spoilt slides: up to half an hour
#   make fuzz     spoilt manifests, masks, bundles and slide headers, FUZZ_SECONDS (600) each
# A machine without a GPU can take the smaller CPU wheels:  make demo TORCH_INDEX=<address of PyTorch's CPU wheel index>

PYTHON ?= python3
TORCH_INDEX ?=
SEED ?= 0
FUZZ_SECONDS ?= 600
BIN := .venv/bin
READY := .venv/.ready


.PHONY: demo test test-slow lint bench torture fuzz pictures clean

$(READY): setup.cfg constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "wsi-ips needs Python 3.11 or newer; say which: make PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || \
	  { echo "could not make .venv; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	$(if $(TORCH_INDEX),$(BIN)/python -m pip install --quiet -c constraints.txt --index-url $(TORCH_INDEX) torch torchvision)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $(READY)

demo: $(READY)
	$(BIN)/wsi-ips demo demo --seed $(SEED)

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(READY)
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -m slow --timeout 2400

lint: $(READY)
	$(BIN)/ruff check wsi_ips pipelines tests
	$(BIN)/mypy

torture: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m torture --timeout 1800 -rP tests

fuzz: $(READY)
	OMP_NUM_THREADS=1 FUZZ_SECONDS=$(FUZZ_SECONDS) $(BIN)/python -m pytest -n 2 -m fuzz -rP tests/fuzz

bench: $(READY)
	$(BIN)/python -m pytest -m benchmark -s --timeout 7200 tests/benchmarks

pictures: demo
	$(BIN)/python docs/pictures.py demo/run docs

clean:
	rm -rf .venv build dist demo *.egg-info
