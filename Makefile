# make demo   set up, compile a real model, check it, save it, load it in a fresh process, benchmark it, write report/
# make test   set up if needed, run the tests
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin

.PHONY: demo test check setup format clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	@echo "Setting up $(VENV) (about three minutes the first time; PyTorch is large)"
	@$(PYTHON) -m venv $(VENV)
	@$(RUN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $@

demo: setup
	@$(RUN)/python examples/demo.py --report report

test: setup
	@$(RUN)/python -m pytest --numprocesses 2 --dist worksteal

check: setup
	@$(RUN)/ruff check src tests examples benchmarks
	@$(RUN)/ruff format --check src tests examples benchmarks
	@$(RUN)/mypy
	@$(RUN)/lint-imports

format: setup
	@$(RUN)/ruff check --fix src tests examples benchmarks
	@$(RUN)/ruff format src tests examples benchmarks

clean:
	rm -rf $(VENV) report
