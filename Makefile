# Two commands on a fresh machine: `make demo` and `make test`; `make demo-parts` is the demo for part segmentation. All
# set up .venv first and can be run again at once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Threads that wait spin a little, then sleep: endless spinning (the default) starves the others on a busy machine, none
# at all (OMP_WAIT_POLICY=PASSIVE) makes small models up to twice slower on an idle one.
export GOMP_SPINCOUNT ?= 1000

.PHONY: demo demo-parts test lint types clean

demo: $(VENV)/.installed
	$(BIN)/python tools/train.py configs/shapes_classification.yaml run.dir=runs/demo run.overwrite=true
	$(BIN)/python tools/evaluate.py runs/demo
	$(BIN)/python tools/merge.py runs/demo

demo-parts: $(VENV)/.installed
	$(BIN)/python tools/train.py configs/shapes_partseg.yaml run.dir=runs/demo_parts run.overwrite=true
	$(BIN)/python tools/evaluate.py runs/demo_parts --out runs/demo_parts/scores.json
	$(BIN)/python tools/merge.py runs/demo_parts

test: lint types
	$(BIN)/python -m pytest

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed
	$(BIN)/mypy

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "ewa3d needs Python 3.10 or newer: make PYTHON=python3.12"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "python3 -m venv failed: on Debian and Ubuntu, sudo apt-get install python3-venv"; exit 2; }
	@echo "installing into $(VENV): PyTorch is large, this takes a few minutes the first time"
	@$(PIP) -e '.[dev,viz]' || { echo "again, without Open3D, which has no wheel for some systems: there are pages instead of pictures"; $(PIP) -e '.[dev]'; }
	@touch $@

clean:
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
