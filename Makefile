# make run    a small city that books, races and tells its story, until Ctrl-C
# make test   every test, against real servers that it starts itself
# make check  formatting, lint, types, and that every branch of the core is tested
# make load   100 priority bookings end to end, judged, with a report   (ARGS="--bookings 500")
# make bench  measured comparisons in less than ten minutes             (ARGS="fanout": one, thoroughly)
# make setup  what the others need, in .venv; they call it themselves

BASE_PYTHON ?= $(shell command -v python3.11 || command -v python3)
PYTHON := .venv/bin/python
INSTALLED := .venv/.installed

.PHONY: run test check load bench setup
.DEFAULT_GOAL := run

run: setup
	$(PYTHON) -m loadtest.demo $(ARGS)

test: setup
	$(PYTHON) -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)

check: setup
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy dispatch tests loadtest bench docs
	$(PYTHON) -m pytest tests/unit/test_routing.py tests/unit/test_lifecycle.py \
	  tests/unit/test_lifecycle_accepted.py tests/unit/test_replay.py tests/unit/test_money.py \
	  tests/unit/test_experiments.py \
	  --cov=dispatch.core --cov-branch --cov-fail-under=100 --no-cov-on-fail

load: setup
	$(PYTHON) -m loadtest $(ARGS)

bench: setup
	$(PYTHON) -m bench $(ARGS)

setup: $(INSTALLED)

# The project itself is installed editable, built by the hatchling that the lock brings.
$(INSTALLED): requirements.lock pyproject.toml
	@"$(BASE_PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed: make BASE_PYTHON=/path/to/python3 $(MAKECMDGOALS)"; exit 1; }
	@if command -v uv >/dev/null; then $(WITH_UV); else $(WITH_PIP); fi
	@touch $@

# uv is to trust the certificates that this machine trusts, as well as those it brings.
define WITH_UV
	set -ex; export UV_SYSTEM_CERTS=1 UV_NATIVE_TLS=1; \
	uv venv --quiet --allow-existing --python "$(BASE_PYTHON)" .venv; \
	uv pip install --quiet --python $(PYTHON) --require-hashes -r requirements.lock; \
	uv pip install --quiet --python $(PYTHON) --no-deps --no-build-isolation -e .
endef

define WITH_PIP
	set -ex; export PIP_DISABLE_PIP_VERSION_CHECK=1; \
	"$(BASE_PYTHON)" -m venv .venv; \
	$(PYTHON) -m pip install --quiet --require-hashes -r requirements.lock; \
	$(PYTHON) -m pip install --quiet --no-deps --no-build-isolation -e .
endef
