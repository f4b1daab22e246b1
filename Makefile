# make demo    a fresh machine: makes .venv, installs, searches, retrains and tests on the embedded digits
# make test    a fresh machine: makes .venv, installs, runs every check and the tests (SLOW=1: the slow ones too)
# make clean   removes what the checks leave behind, and .venv

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo test clean

demo: $(STAMP)
	$(BIN)/python -m supernet.train +experiment=darts_digits

# Two workers, each with one thread of torch: the suite is bound by the processor, and more threads only fight for it.
test: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

$(STAMP): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	find supernet tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
