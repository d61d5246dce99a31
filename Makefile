# Every target makes its own environment in .venv if there is none.
# On an empty machine: make demo, make test.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo

CROWD := crowd
STORES := $(CROWD)/nsd.zarr,$(CROWD)/god.zarr,$(CROWD)/vim1.zarr

.PHONY: demo crowd-demo explore test slow docs faults check fix parity env clean-demo

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

# Three simulated datasets, one encoder without nsd-subj01, who then joins from 100
# pictures. Resumes.
crowd-demo: env
	test -d $(CROWD)/nsd || $(BIN)/python -m ubrain_jax.simulate --dataset=nsd \
		--out=$(CROWD)/nsd --voxels=160 --noise=1,1,3 --seed=11
	test -d $(CROWD)/god || $(BIN)/python -m ubrain_jax.simulate --dataset=god \
		--out=$(CROWD)/god --voxels=160 --images=1200 --seed=12
	test -d $(CROWD)/vim1 || $(BIN)/python -m ubrain_jax.simulate --dataset=vim1 \
		--out=$(CROWD)/vim1 --voxels=160 --images=600 --test_images=120 --seed=13
	test -d $(CROWD)/nsd.zarr || $(BIN)/python -m ubrain_jax.prepare --dataset=nsd \
		--source=$(CROWD)/nsd --space=func1pt8mm --image_px=112 --val_fraction=0.1 \
		--out=$(CROWD)/nsd.zarr
	test -d $(CROWD)/god.zarr || $(BIN)/python -m ubrain_jax.prepare --dataset=god \
		--source=$(CROWD)/god --images=$(CROWD)/god/images --image_px=112 \
		--val_fraction=0.1 --out=$(CROWD)/god.zarr
	test -d $(CROWD)/vim1.zarr || $(BIN)/python -m ubrain_jax.prepare --dataset=vim1 \
		--source=$(CROWD)/vim1 --image_px=112 --val_fraction=0.1 --out=$(CROWD)/vim1.zarr
	$(BIN)/python -m ubrain_jax.main --config=configs/crowd_demo.py \
		--workdir=$(CROWD)/encoder --config.data.crowd=$(STORES) \
		--config.data.subjects=nsd-subj02,nsd-subj03,god-subject1,god-subject2,god-subject3,vim1-s1,vim1-s2
	$(BIN)/python -m ubrain_jax.transfer --encoder=$(CROWD)/encoder \
		--crowd=$(CROWD)/nsd.zarr --subject=nsd-subj01 --num_images=100 --init=twin \
		--workdir=$(CROWD)/subj01

# The demo's encoder from all sides: open demo/maps/index.html.
explore: demo
	test -d $(DEMO)/maps || $(BIN)/python -m ubrain_jax.explore --encoder=$(DEMO)/run \
		--out=$(DEMO)/maps --num_pictures=100 --within=kind:scene:2

clean-demo:
	rm -rf $(DEMO) $(CROWD)

# Parity with torch runs when torch is installed: make parity, or CI. Most of the time of
# tests is XLA's, so here it compiles with little effort.
QUICK := --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 \
	--xla_cpu_use_fusion_emitters=false

test: env
	XLA_FLAGS="$(QUICK)" $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

# What make test leaves out, and programs compiled as they are for users.
slow: env
	$(BIN)/python -m pytest -n 2 --dist loadfile -m slow

# docs/api.md from the docstrings; a test compares them.
docs: env
	$(BIN)/python -m tests.api_page

# Kills, flipped bits, full disks, two runs in one folder: ten minutes.
faults: env
	$(BIN)/python -m tests.faults.kill --kills=80 --real=20
	$(BIN)/python -m tests.faults.flip --flips=1000
	$(BIN)/python -m tests.faults.full
	$(BIN)/python -m tests.faults.lock

parity: env
	$(BIN)/python -m pip install --quiet -e '.[parity]'
	$(BIN)/python -m pytest -m parity

check: env
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports
	$(BIN)/shellcheck -x launch/*.sh launch/slurm.sbatch .ci/run

fix: env
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
