# Each target works from a bare clone with only python3 (3.11 or newer) and make.
#
#   make setup         .venv with the tested versions of everything
#   make setup-locked  the same from .ci/requirements.lock, each file checked against its hash; CPython 3.11, Linux, CPU build of torch
#   make lock          writes .ci/requirements.lock anew, of the versions that .venv has
#   make demo          the whole recipe on procedural rooms, into DEMO_DIR
#   make test          every test but the slow ones
#   make test-slow     those that take long: figures of speed and memory, Java's scores, the commands of the docs
#   make test-gpu      on one NVIDIA GPU: kernels, autocast, synchronisations, ZeRO on NCCL, compiled layers; PYTHON_GPU=python3 takes
#                      an environment that is there already (torch of its CUDA) instead of .venv
#   make smoke         the whole recipe at toy size, minutes, into a folder that is removed
#   make docs-figures  numbers and pictures in README.md and docs/, from the run in DEMO_DIR
#   make quality       lint, formatting, spelling, and no large files, checked
#   make subjects      subjects of the commits since SINCE (origin/main) are of at most 72 characters
#   make style         lint and formatting, fixed
#
# torch comes first and alone, from the index pip is configured with; with plain PyPI on Linux that is the CUDA build.
# TORCH_INDEX_URL takes it from another index, for example the CPU build:
#   make setup TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu

PYTHON ?= python3
TORCH_INDEX_URL ?=
DEMO_DIR ?= demo
PYTHON_GPU ?=
SINCE ?= origin/main

LOCK := .ci/requirements.lock
CPU_INDEX_URL := https://download.pytorch.org/whl/cpu

VENV := .venv
VENV_PYTHON := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
SOURCES := $(wildcard modeling_vggt_qwen3 data_scripts recipes tests push_to_hub.py setup.py .ci)

.PHONY: setup setup-locked lock demo test test-slow test-gpu smoke docs-figures quality subjects style

setup: $(INSTALLED)

$(INSTALLED): setup.py constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python 3.11 or newer is needed; name one with: make $(or $(MAKECMDGOALS),setup) PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) cannot make virtual environments: its venv or ensurepip module is missing." \
			"On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(VENV_PYTHON) -m pip install -c constraints.txt torch $(if $(TORCH_INDEX_URL),--index-url $(TORCH_INDEX_URL))
	$(VENV_PYTHON) -m pip install -c constraints.txt -e '.[dev]'
	touch $@

setup-locked:
	$(PYTHON) -m venv $(VENV)
	$(VENV_PYTHON) -m pip install --require-hashes --no-deps --extra-index-url $(or $(TORCH_INDEX_URL),$(CPU_INDEX_URL)) -r $(LOCK)
	$(VENV_PYTHON) -m pip install --no-deps --no-build-isolation -e .
	touch $(INSTALLED)

# What pip chose among what constraints.txt leaves open is kept. uv's, because pip writes no hashes.
lock: $(INSTALLED)
	$(VENV_PYTHON) -m pip install uv
	$(VENV_PYTHON) -m pip freeze --exclude-editable --exclude uv > $(VENV)/versions.txt
	sed -n '/^#/p' $(LOCK) > $(VENV)/requirements.lock
	$(VENV)/bin/uv pip compile setup.py --extra dev -c $(VENV)/versions.txt --generate-hashes --no-header --no-annotate --quiet \
		--python-version 3.11 --python-platform x86_64-manylinux_2_28 --index $(or $(TORCH_INDEX_URL),$(CPU_INDEX_URL)) \
		--index-strategy unsafe-best-match $(addprefix --find-links ,$(PIP_FIND_LINKS)) >> $(VENV)/requirements.lock
	mv $(VENV)/requirements.lock $(LOCK)

demo: $(INSTALLED)
	$(VENV_PYTHON) -m recipes.demo --output $(DEMO_DIR)

# Several processes of one thread each: toy models keep no two threads busy, and threads of two processes block each other.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(VENV_PYTHON) -m pytest tests -m "not slow and not gpu" --numprocesses auto --maxprocesses 4 --dist loadfile

test-slow: $(INSTALLED)
	$(VENV_PYTHON) -m pytest tests -m "slow and not gpu"

test-gpu: $(if $(PYTHON_GPU),,$(INSTALLED))
	$(or $(PYTHON_GPU),$(VENV_PYTHON)) -m pytest tests -m gpu

smoke: $(INSTALLED)
	folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && $(VENV_PYTHON) -m recipes.demo --output "$$folder/demo" --smoke

docs-figures: $(INSTALLED)
	$(VENV_PYTHON) -m recipes.docs_figures --demo $(DEMO_DIR)

# An sdist has neither git nor .ci.
quality: $(INSTALLED)
	$(VENV_PYTHON) -m ruff check $(SOURCES)
	$(VENV_PYTHON) -m ruff format --check $(SOURCES)
	$(VENV)/bin/typos
	$(if $(wildcard .git),$(VENV_PYTHON) .ci/check_files.py)

subjects:
	$(PYTHON) .ci/check_subjects.py $(SINCE)..HEAD

style: $(INSTALLED)
	$(VENV_PYTHON) -m ruff check --fix $(SOURCES)
	$(VENV_PYTHON) -m ruff format $(SOURCES)
