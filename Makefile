# Two commands do everything on a machine with Python 3.11: `make demo` and `make test`.
PYTHON ?= python3.11
# Another Python has an environment of its own: .venv-python3.13 with PYTHON=python3.13.
VENV ?= .venv$(if $(filter-out python3.11,$(notdir $(PYTHON))),-$(notdir $(PYTHON)))
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-lowest coverage soak fuzz fuzz-service lint format docs notebooks install lock \
	dist

# Trains dense and 95%-sparse captioners on embedded data and shows what they say.
demo: $(STAMP)
	$(BIN)/python launch/demo.py --workdir=runs/demo

# Bytecode is kept, whatever the environment says: tests start hundreds of processes.
test: $(STAMP)
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=20 tests

# Share of the lines of the package that tests run, processes that they start included; of a part:
# make coverage TESTS=tests/pruning GOAL=0. The report by file is coverage/index.html.
TESTS ?= tests
GOAL ?= 92
coverage: $(STAMP)
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder \
		--cov --cov-report=html:coverage --cov-report=term:skip-covered --cov-fail-under=$(GOAL) \
		$(TESTS)

# The lowest versions that setup.cfg allows, in an environment of their own: a short part of the tests.
# Old libraries use names that newer ones deprecate: these warnings of theirs, and no others, are let pass.
LOWEST := $(VENV)/lowest
SHORT := tests/test_front_door.py tests/pruning tests/decoding/test_sparse_parity.py \
	tests/training/test_steps.py
OLD := -W "ignore:jax.interpreters.batching.NotMapped:DeprecationWarning" \
	-W "ignore:jax.lib.xla_extension:DeprecationWarning" \
	-W "ignore::pyparsing.warnings.PyparsingDeprecationWarning" \
	-W "ignore:Sharding info not provided when restoring:UserWarning"
test-lowest: $(LOWEST)/.installed
	$(LOWEST)/bin/python -m pytest $(OLD) --durations=20 $(SHORT)

$(LOWEST)/.installed: setup.cfg $(STAMP)
	$(BIN)/python -m pip install $(QUIET) uv
	test -x $(LOWEST)/bin/python || $(BIN)/uv venv --quiet --python=$(BIN)/python $(LOWEST)
	$(BIN)/uv pip install --quiet --python=$(LOWEST) --compile-bytecode \
		--build-constraints=requirements.txt --resolution=lowest-direct --editable ".[test]"
	touch $@

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

# Style, dead code and types; what each of them leaves out is in pyproject.toml. Types are checked by
# Python 3.11 alone: other Pythons lock other versions of libraries, whose types may differ.
# Of benchmarks, which few tests run, names and arguments are checked: what they call may have changed.
NAMES := --check-untyped-defs --follow-imports=silent $(addprefix --disable-error-code=,arg-type \
	assignment call-overload dict-item index list-item misc operator union-attr var-annotated)
lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/vulture
	$(if $(filter python3.11,$(notdir $(PYTHON))),$(BIN)/mypy && $(BIN)/mypy $(NAMES) benchmarks launch)

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The documentation site in site/ (mkdocs.yml), in an environment of its own; any warning is an error.
DOCS := $(VENV)/docs
docs: $(DOCS)/.installed
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --quiet --strict

$(DOCS)/.installed: setup.cfg
	test -x $(DOCS)/bin/python || $(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -c "from configparser import *; c = ConfigParser(); c.read('setup.cfg'); \
		print(c['options.extras_require']['docs'])" > $(DOCS)/requirements.txt
	$(DOCS)/bin/python -m pip install $(QUIET) -r $(DOCS)/requirements.txt
	touch $@

# Executes the notebooks and stores what they show. Look at it.
notebooks: $(STAMP)
	$(BIN)/python colabs/execute.py

install: $(STAMP)

# Wheel and source archive in dist/. A leftover build/ would add files that no longer exist.
dist: $(STAMP)
	rm -rf build dist
	$(BIN)/python -c "from setuptools import build_meta as b; b.build_sdist('dist'); b.build_wheel('dist')"

# Writes requirements.txt; versions in it stay unless UPGRADE=--upgrade.
lock: $(STAMP)
	$(BIN)/python -m pip install $(QUIET) uv
	$(BIN)/uv pip compile --quiet --universal --python-version=3.11 --generate-hashes --no-annotate \
		--custom-compile-command="make lock" --extra=test $(UPGRADE) \
		--output-file=requirements.txt setup.cfg

# Reinstalled only when the dependencies change: first what requirements.txt locks, with its hashes,
# for Python 3.11 to 3.13; then what a later Python lacks, by the ranges of setup.cfg. The package is
# built by the setuptools that is installed then, a locked one as well.
QUIET := --quiet --disable-pip-version-check
LOCKED = $(BIN)/python -c "import sys; sys.exit(sys.version_info >= (3, 14))"
$(STAMP): setup.cfg setup.py pyproject.toml requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	! $(LOCKED) || \
		$(BIN)/python -m pip install $(QUIET) --no-deps --require-hashes -r requirements.txt
	$(LOCKED) || $(BIN)/python -m pip install $(QUIET) "setuptools>=77"
	$(BIN)/python -m pip install $(QUIET) --no-build-isolation --editable ".[test]"
	touch $@
