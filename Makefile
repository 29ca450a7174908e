# Everything runs from a bare checkout with CPython >= 3.11; PIP_* environment variables are honoured.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
MODEL := rdsr-photo

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast bench check-large fuzz lint format default-bundle wheel clean
.PHONY: family family-status family-pause family-continue family-take gpu-pack

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "rdsr needs CPython 3.11 or newer: set PYTHON=…")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.export: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) -c constraints.txt -e '.[export,bench]'
	@touch $@

$(VENV)/.dev: $(VENV)/.export
	$(PIP) -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(VENV)/.export  ## export the shipped checkpoint, verify it, upscale the sample picture, report
	@mkdir -p demo
	$(BIN)/rdsr export $(MODEL) -o demo/$(MODEL).bundle --force
	$(BIN)/rdsr verify demo/$(MODEL).bundle
	$(BIN)/rdsr upscale export/samples/LRx4/portrait.png -o demo/portrait-x4.png --bundle demo/$(MODEL).bundle
	$(BIN)/rdsr bench quality --dataset export/samples --bundle demo/$(MODEL).bundle --precision int8 --drop --bicubic -o demo/report
	@echo "picture: demo/portrait-x4.png (from export/samples/LRx4/portrait.png)   report: demo/report/quality.md"

# Two files of tests at a time; each file's tests share what they have prepared.
SPREAD ?= -n 2 --dist loadfile
# One thread of torch for each, and none that spins while it waits: on two busy cores that takes a test four times as long.
test test-fast: export OMP_NUM_THREADS ?= 1
test test-fast: export OMP_WAIT_POLICY ?= passive

# A test that hangs fails by its name after ten minutes; in native code, where nothing interrupts it, its process ends after 15.
HANGS = --timeout 600 -o faulthandler_timeout=900 -o faulthandler_exit_on_timeout=true --max-worker-restart 0

test: $(VENV)/.dev  ## the whole test suite
	$(BIN)/python -m pytest -q $(SPREAD) $(HANGS)

test-fast: $(VENV)/.dev  ## all tests but the slow ones
	$(BIN)/python -m pytest -q $(SPREAD) $(HANGS) -m "not slow"

# Names of models that `rdsr bench latency` knows; a path to a bundle, checkpoint or ONNX file will do as well.
BENCH_MODELS ?= rdsr-base rdsr-small rdsr-photo rdsr-tiny diffir bicubic disp span-28 rlfn-ntire imdn rfdn
BENCH_DATASET ?= $(firstword $(wildcard ../shared/data/test/Set5) export/samples)
# Evaluated once, when it is needed.
BENCH = $(eval BENCH := benchmarks/results/$(shell $(BIN)/python -c 'from rdsr.benchmarks.host import isa_folder; print(isa_folder())'))$(BENCH)
# A command that could not measure all of it writes what it has, and the report lists the rest.
WRITTEN = test -f $(BENCH)/$(1).json

bench: $(VENV)/.export  ## ten minutes: latency, scaling, quality and report in benchmarks/results/ISA, the README's table
	@rm -f $(addprefix $(BENCH)/,latency.json sweep-size.json quality.json)
	$(BIN)/rdsr bench latency $(addprefix --model ,$(BENCH_MODELS)) --threads 2 --budget 400 -o $(BENCH) || $(call WRITTEN,latency)
	$(BIN)/rdsr bench latency --model rdsr-base --model rdsr-small --backend onnxruntime --backend openvino --sweep size --threads 2 --budget 200 -o $(BENCH) || $(call WRITTEN,sweep-size)
	$(BIN)/rdsr bench quality --model rdsr-base --model rdsr-small --model rdsr-photo --model rdsr-tiny --model bicubic --precision fp32,int8 --threads 2 --dataset $(BENCH_DATASET) -o $(BENCH) || $(call WRITTEN,quality)
	$(BIN)/rdsr bench crops --dataset export/samples --threads 2 -o $(BENCH)/crops.png
	$(BIN)/rdsr bench report -o $(BENCH) --readme README.md

RUNS ?= ../runs
FAMILY := $(BIN)/rdsr train family
FAMILY_TESTS ?= $(wildcard $(addprefix ../shared/data/test/,Set5 Set14 B100))

family: $(VENV)/.export  ## train the family for ever in RUNS, at the lowest priority; kill it whenever you like
	exec $(FAMILY) run --runs $(RUNS)

family-status: $(VENV)/.export  ## stage, step, minutes, Kodak24 of every member in RUNS
	@$(FAMILY) status --runs $(RUNS)

family-pause: $(VENV)/.export  ## stop training at the next step, until family-continue
	@$(FAMILY) pause --runs $(RUNS)

family-continue: $(VENV)/.export  ## let a paused family go on
	@$(FAMILY) continue --runs $(RUNS)

family-take: $(VENV)/.export  ## ship MEMBER's best weights, and the default bundle if it is made of them, where Kodak24 has risen
	$(if $(MEMBER),,$(error name a member: make family-take MEMBER=small))
	@$(FAMILY) take --runs $(RUNS) --member $(MEMBER) $(addprefix --test ,$(FAMILY_TESTS))
	@if [ "rdsr-$(MEMBER)" = $(MODEL) ] && ! git diff --quiet -- models/weights/$(MODEL)-x4.safetensors; then $(MAKE) default-bundle; fi

GPU_PACK ?= .gpu/pack.tar

gpu-pack: $(VENV)/.export  ## pictures for half an hour of a GPU, in one archive of at most 36 MiB (START=FILE adds weights to start from)
	$(BIN)/python -m rdsr.models.training.gpu pack $(GPU_PACK) --data ../shared/data/train --teacher ../shared/data/teacher --validation ../shared/data/val/Kodak24 $(if $(START),--start $(START))

check-large: $(VENV)/.dev  ## what is too long for CI: 10-minute soaks, giant pictures; reports in check-large/
	$(BIN)/python -m pytest -q tests/large

MINUTES ?= 1

fuzz: $(VENV)/.dev  ## hostile input for MINUTES of each target (TARGET=NAME: of one; SEED=N: again); findings in fuzz/
	$(BIN)/python -m rdsr.tests.fuzz.driver --minutes $(MINUTES) $(addprefix --target ,$(TARGET)) $(addprefix --seed ,$(SEED))

# The checkout is the package `rdsr`, whatever its folder is called: mypy sees it through a link of that name.
lint: $(VENV)/.dev  ## ruff, mypy, the container's files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/hadolint Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec compose.yaml
	@mkdir -p $(VENV)/mypy && ln -sfn "$(CURDIR)" $(VENV)/mypy/rdsr
	cd $(VENV)/mypy && MYPYPATH=. ../bin/mypy --config-file rdsr/pyproject.toml -p rdsr

format: $(VENV)/.dev  ## rewrite the code in ruff's form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

default-bundle: $(VENV)/.export  ## remake the bundle that the package carries from the shipped checkpoint
	$(BIN)/rdsr export $(MODEL) -o runtime/default_bundle --force --no-single-graph

wheel: $(VENV)/.dev  ## build dist/*.whl
	rm -rf build
	$(BIN)/python -m build --wheel --outdir dist .

clean:  ## remove what make made, the environment included
	rm -rf $(VENV) build dist demo check-large fuzz .gpu *.egg-info
