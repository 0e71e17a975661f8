# make demo   the main job on a sample scene: outputs/demo/report.html
# make test   the test suite but for the tests marked slow
# make lint   ruff, formatting, mypy
# Each works alone on a fresh machine with Python 3.11 or later: the first sets up .venv.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
EXTRAS ?= dev,perceptual

.PHONY: demo test lint setup
.DELETE_ON_ERROR:

demo: $(READY)
	$(BIN)/python -m data_prep.sentinel2_sample
	$(BIN)/regnet run experiment=demo

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" --durations 10

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: $(READY)

# The marker is written last, so that an installation that was cut short is taken up again.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "regnet needs Python 3.11 or later: make PYTHON=/path/to/python3.11 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$(EXTRAS)]'
	touch $@
