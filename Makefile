# Everything here works from a fresh clone: what is missing is installed or made first.
EXPERIMENT ?= turbulence
ARGS ?=
PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= test,lint
PIP_ARGS ?=
RUN = runs/$(EXPERIMENT)
export DYNGEN_RUN ?= $(RUN)

BIN = $(VENV)/bin
DYNGEN = $(BIN)/dyngen
READY = $(VENV)/.ready
TOOLS = $(VENV)/.ready-with-extras

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint train-image train-discriminator train-video train-motion train-renderer rollout results tensorboard bench clean

help:  ## show this help
	@echo "make TARGET [EXPERIMENT=turbulence] [ARGS='--trainer.max_steps 2000']"
	@sed -n 's/^\([a-z-]*\):.*##  *\(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

setup: $(TOOLS)  ## make .venv with the versions of constraints.txt

# Without a GPU, `make setup PIP_ARGS='--extra-index-url https://download.pytorch.org/whl/cpu'` may
# save gigabytes.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("dyngen needs Python 3.11 or newer: set PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	@date +%s > .setup-started
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt $(PIP_ARGS) --editable .
	@echo "$$(( $$(date +%s) - $$(cat .setup-started) ))" > $@; rm -f .setup-started

$(TOOLS): pyproject.toml constraints.txt | $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt $(PIP_ARGS) --editable '.[$(EXTRAS)]'
	@# A peer to test against. Of what it asks for, torchvision is not needed, and may not fit the torch.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps azula
	@touch $@

demo: $(READY)  ## data, training, rollouts, scores and report in runs/demo: 11 minutes on 2 cores
	DYNGEN_SETUP_SECONDS=$$(cat $(READY)) $(DYNGEN) demo $(ARGS)

# A process to each of two cores; WORKERS=0 is one process for all, as a debugger wants it.
WORKERS ?= 2
test: $(TOOLS)  ## run the tests
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(TOOLS)  ## check style and types
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

$(DYNGEN_RUN)/cube.zarr: | $(READY)
	$(DYNGEN) simulate $(EXPERIMENT) --config experiments/$(EXPERIMENT)/cube.yaml --out $@

train-image: $(READY) | $(DYNGEN_RUN)/cube.zarr  ## train the image model, or go on with it
	$(DYNGEN) fit --config experiments/$(EXPERIMENT)/image.yaml $(ARGS)

$(DYNGEN_RUN)/image/checkpoints/last.ckpt: | $(READY) $(DYNGEN_RUN)/cube.zarr
	$(DYNGEN) fit --config experiments/$(EXPERIMENT)/image.yaml

train-discriminator: $(READY) | $(DYNGEN_RUN)/image/checkpoints/last.ckpt  ## train the discriminator
	$(DYNGEN) fit --config experiments/$(EXPERIMENT)/image.yaml
	$(DYNGEN) fit --config experiments/$(EXPERIMENT)/discriminator.yaml $(ARGS)

train-video: $(READY) | $(DYNGEN_RUN)/cube.zarr  ## train the video diffusion model to compare with
	$(DYNGEN) fit --config experiments/$(EXPERIMENT)/video_diffusion.yaml $(ARGS)

$(DYNGEN_RUN)/discriminator/checkpoints/last.ckpt: | $(DYNGEN_RUN)/image/checkpoints/last.ckpt
	$(DYNGEN) fit --config experiments/$(EXPERIMENT)/discriminator.yaml

rollout: $(READY) | $(DYNGEN_RUN)/discriminator/checkpoints/last.ckpt  ## sample an ensemble into a Zarr
	$(DYNGEN) rollout --config experiments/$(EXPERIMENT)/rollout.yaml $(ARGS)

# Motion has a world of its own, whatever EXPERIMENT is.
MOTION ?= runs/garden
MOTION_FIT = DYNGEN_RUN=$(MOTION) $(DYNGEN) fit --config experiments/garden

$(MOTION)/motion.zarr: | $(READY)
	$(DYNGEN) simulate garden --config experiments/garden/cube.yaml --out $@

train-motion: $(READY) | $(MOTION)/motion.zarr  ## train the spectral volumes: autoencoder, base, coordination
	$(MOTION_FIT)/autoencoder.yaml
	$(MOTION_FIT)/spectral_base.yaml
	$(MOTION_FIT)/spectral_ldm.yaml $(ARGS)

train-renderer: $(READY) | $(MOTION)/motion.zarr  ## train the renderer of pictures that move
	$(MOTION_FIT)/renderer.yaml $(ARGS)

results: $(READY)  ## train and compare all systems of an experiment: docs/results/EXPERIMENT
	$(DYNGEN) $(if $(filter garden,$(EXPERIMENT)),garden,contest) --experiment experiments/$(EXPERIMENT) $(ARGS)
ifeq ($(EXPERIMENT),garden)
	$(DYNGEN) rendering --experiment experiments/garden
endif

tensorboard: $(READY)  ## open TensorBoard on the runs
	$(BIN)/tensorboard --logdir runs $(ARGS)

bench: $(TOOLS)  ## run the benchmarks and write benchmarks/results.json
	$(BIN)/python -m benchmarks $(ARGS)

clean:  ## delete the environment and caches, not the runs
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
