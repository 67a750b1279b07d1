# make quickstart   install what is pinned and distil a small ranker for Python's documentation
# make test         install what is pinned and run the test suite
#
# Another torch or another index:  make quickstart TORCH="torch==2.13.0 --index-url URL" INDEX="--index-url URL"

PYTHON ?= python3
VENV   ?= .venv
TORCH  ?= torch==2.13.0
INDEX  ?=
EXTRAS ?= distill,serve,hub,api
TESTS  ?= tests
OUT    ?= runs/quickstart

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(INDEX)

C_SOURCES := $(wildcard src/inranker/rank/native/*.h src/inranker/rank/native/*.cpp)

.PHONY: quickstart test check clean

quickstart: $(VENV)/.installed
	$(BIN)/inranker quickstart --out $(OUT)

test: $(VENV)/.installed-tests
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -n 2 --dist worksteal $(TESTS)

check: $(VENV)/.installed-tests
	$(BIN)/ruff check src tests benchmarks hatch_build.py
	$(BIN)/ruff format --check src tests benchmarks hatch_build.py
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(C_SOURCES) benchmarks/mask_cpuid.c

# Editing these builds the native engine anew.
NATIVE := hatch_build.py $(C_SOURCES)

# torch comes first and on its own: whoever sets TORCH gets that build, and nothing after it asks for another.
$(VENV)/.installed: constraints.txt pyproject.toml $(NATIVE)
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed, $(PYTHON) is " + sys.version.split()[0] + "; make PYTHON=...")'
	@echo "Installing into $(VENV): about 0.3 GB to download, and torch: 0.2 GB in a CPU build, about 2.5 GB in Linux's"
	@echo "default build with CUDA (another build: make TORCH=\"torch==2.13.0 --index-url URL\")."
	$(PYTHON) -m venv $(VENV)
	@grep -v -i '^torch==' constraints.txt > $(VENV)/constraints.txt
	$(PIP) --upgrade pip hatchling editables -c $(VENV)/constraints.txt
	$(PIP) $(TORCH)
	$(PIP) --no-build-isolation -e '.[$(EXTRAS)]' -c $(VENV)/constraints.txt
	@touch $@

$(VENV)/.installed-tests: $(VENV)/.installed
	$(PIP) --no-build-isolation -e '.[$(EXTRAS),openvino]' --group dev -c $(VENV)/constraints.txt
	@touch $@

clean:
	rm -rf $(VENV) runs .pytest_cache .ruff_cache .mypy_cache
