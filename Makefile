# make demo   set up, train both systems on a small data set, evaluate, write pictures and a report
# make test   set up, run the fast tests
PYTHON_BIN := .venv/bin/python
export PYTHONWARNINGS := ignore::FutureWarning,ignore::UserWarning
.PHONY: setup demo test test-slow lint format typecheck coverage clean

setup:
	@bash tools/setup.sh

demo: setup
	@$(PYTHON_BIN) tools/run_demo.py

test: setup
	@$(PYTHON_BIN) -m pytest -q -n 2 -m "not slow and not gpu"

test-slow: setup
	@$(PYTHON_BIN) -m pytest -q -m "slow and not gpu"

lint: setup
	@$(PYTHON_BIN) -m ruff check . && $(PYTHON_BIN) -m ruff format --check .

format: setup
	@$(PYTHON_BIN) -m ruff check --fix . ; $(PYTHON_BIN) -m ruff format .

typecheck: setup
	@$(PYTHON_BIN) -m mypy

coverage: setup
	@$(PYTHON_BIN) -m pytest -q -n 2 -m "not gpu" --cov --cov-report=term-missing:skip-covered

clean:
	rm -rf demo_output output .pytest_cache .ruff_cache .mypy_cache .hypothesis .coverage build *.egg-info
