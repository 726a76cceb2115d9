# Two commands do everything on a machine with Python 3.11: `make demo` and `make test`.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test soak fuzz fuzz-service lint format install

# Trains dense and 95%-sparse captioners on embedded data and shows what they say.
demo: $(STAMP)
	$(BIN)/python launch/demo.py --workdir=runs/demo

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder tests

# Kills tiny runs at random; each must end as if left alone. Repeating it continues.
soak: $(STAMP)
	$(BIN)/python benchmarks/soak.py

# Damages the files of every reader, COUNT times each (docs/results/fuzz.md). Repeating it continues.
COUNT ?= 20000
fuzz: $(STAMP)
	$(BIN)/python tests/fuzz/fuzz_runs.py --count=$(COUNT) --state=fuzz_failures.json \
		--output=docs/results/fuzz.md

# Wrong requests to a running service; schemathesis has an environment of its own.
MINUTES ?= 10
fuzz-service: $(STAMP)
	test -x $(VENV)/schemathesis/bin/st || { $(PYTHON) -m venv $(VENV)/schemathesis && \
		$(VENV)/schemathesis/bin/pip install --quiet --disable-pip-version-check schemathesis; }
	$(BIN)/python tests/service/fuzz_service.py --minutes=$(MINUTES) \
		--schemathesis=$(VENV)/schemathesis/bin/st

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: $(STAMP)

# Reinstalled only when the dependencies change.
$(STAMP): setup.cfg setup.py pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[test]"
	touch $@
