# Needs make and Python 3.11 or newer; everything else is installed into .venv.
#   make quickstart    renders the first clips, a contact sheet, a comparison and a report, into out/
# On Linux without a GPU this spares gigabytes of CUDA:
#   make quickstart PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu"
PYTHON ?= python3
PIP_FLAGS ?=
VENV := .venv
BIN := $(VENV)/bin
INSTALL = $(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt

FLOWBLEND ?= $(BIN)/flowblend

.PHONY: quickstart test faults mutants peers quality wheel bench bench-quick clean

quickstart: $(VENV)/.runtime
	$(BIN)/flowblend render quickstart --gallery --report

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not night"

# Kills, failing system calls, a bad night and that of a cluster; slow and thorough tests;
# forty changes of the spine, of which the tests must notice most.
faults: $(VENV)/.dev
	$(BIN)/python -m tests.faults.kill_publishing --kills 150
	$(BIN)/python -m tests.faults.inject
	$(BIN)/python -m tests.faults.night --kills 20 --command $(FLOWBLEND)
	$(BIN)/python -m tests.faults.cluster --rounds 30
	$(BIN)/python -m pytest -q -n 2 -m night
	FLOWBLEND_EXAMPLES=2000 $(BIN)/python -m pytest -q -n 2 --dist load -m thorough
	$(BIN)/python -m tests.mutants --part stages criteria identity schedulers --sample 10 --goal 0.8

# Changes the spine in one place at a time, to see whether its tests notice; takes days.
mutants: $(VENV)/.dev
	$(BIN)/python -m tests.mutants

# diffusers' own tests with our schedulers and switches: make peers DIFFUSERS=path-to-a-checkout
peers: $(VENV)/.dev
	$(if $(DIFFUSERS),$(BIN)/python -m pip install -q parameterized requests-mock)
	$(BIN)/python -m tests.peers $(if $(DIFFUSERS),$(DIFFUSERS),none)

quality: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

wheel: $(VENV)/.dev
	$(BIN)/python -m build --wheel --no-isolation --outdir dist

# Those with a main are benchmarks, the others what they share.
bench: $(VENV)/.dev
	for script in $$(grep -l __main__ benchmarks/*.py); do $(BIN)/python "$$script" || exit 1; done

bench-quick: $(VENV)/.dev
	for script in $$(grep -l __main__ benchmarks/*.py); do \
	    $(BIN)/python "$$script" --quick || exit 1; done

clean:
	rm -rf $(VENV) dist build

# torch first and by itself, so that the pinned build is chosen before anything else asks for one.
$(VENV)/.runtime: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("flowblend needs Python 3.11 or newer, found " + sys.version.split()[0] + ": name one with make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) torch
	$(INSTALL) -e ".[metrics,report]"
	touch $@

$(VENV)/.dev: $(VENV)/.runtime
	$(INSTALL) -e ".[dev]"
	touch $@
