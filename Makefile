# Every target first sets itself up in .venv, and skips that when nothing it depends on has changed.

# The first Python on the PATH that the pinned dependencies have wheels for; `make PYTHON=... demo` overrides it.
PYTHON ?= $(shell for python in python3 python3.12 python3.11 python3.13; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$python && break; done)
BIN := .venv/bin
STAMP := .venv/.installed
PYTEST := $(BIN)/pytest

.PHONY: demo unit test soak kernels check proto clean

demo: $(STAMP)
	$(BIN)/twinpool demo

# Property tests with fewer examples than `make test` has.
unit: $(STAMP)
	HYPOTHESIS_PROFILE=unit $(PYTEST) -q -m 'not ray and not slow and not gpu and not soak'

test: $(STAMP)
	$(PYTEST) -q -m 'not gpu and not soak'

# Tests marked soak, and every property test with many more examples and a new seed each time.
soak: $(STAMP)
	HYPOTHESIS_PROFILE=soak $(PYTEST) -q --timeout 7200 -m '(soak or hypothesis) and not gpu'

# Every variant of the Triton kernels, compiled for GPUs that need not be there; what was compiled before is not again.
kernels: $(STAMP)
	$(BIN)/twinpool bench kernels --compile-only --cache build/kernels --document docs/kernels.md

check: $(STAMP)
	scripts/check

proto: $(STAMP)
	$(BIN)/python scripts/generate_protos.py

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist src/*.egg-info

# constraints.txt pins every version: a bare torch would pull gigabytes of other libraries.
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo 'Twinpool needs Python 3.11, 3.12 or 3.13 on the PATH, or make PYTHON=/path/to/python' >&2; exit 2; }
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	@touch $@
