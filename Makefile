# Every target makes its own environment in .venv if there is none.
# On an empty machine: make demo, make test.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo

.PHONY: demo test check fix parity env clean-demo

env: $(VENV)/installed

$(VENV)/installed: setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[test,viz]'
	touch $@

# Simulate a small NSD, prepare it, train, evaluate, print the scores. Resumes.
demo: env
	test -d $(DEMO)/nsd || $(BIN)/python -m ubrain_jax.simulate --out=$(DEMO)/nsd
	test -d $(DEMO)/nsd.zarr || $(BIN)/python -m ubrain_jax.prepare --dataset=nsd \
		--source=$(DEMO)/nsd --space=func1pt8mm --image_px=112 --out=$(DEMO)/nsd.zarr
	$(BIN)/python -m ubrain_jax.main --config=configs/demo.py --workdir=$(DEMO)/run \
		--config.data.crowd=$(DEMO)/nsd.zarr

clean-demo:
	rm -rf $(DEMO)

# Parity with torch runs when torch is installed: make parity, or CI.
test: env
	$(BIN)/python -m pytest

parity: env
	$(BIN)/python -m pip install --quiet -e '.[parity]'
	$(BIN)/python -m pytest -m parity

check: env
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

fix: env
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
