# pg_gpt2: `make help` lists what there is. Clusters and paths are explained in docker/cluster.sh.

EXTENSION = pg_gpt2
DATA = $(wildcard pg_gpt2--*.sql)
PG_CONFIG ?= pg_config

# PL/Python embeds the distribution's Python, so that is the one to build and test with; PGXS has a PYTHON of its own.
SYSTEM_PYTHON = /usr/bin/python3
# Passed on to pytest, for example PYTEST_ARGS='-k tokenizer -x'.
PYTEST_ARGS =
# Passed on to python -m loaders.serve, for example SERVE_ARGS='--port 8000'.
SERVE_ARGS =
# Passed on to python -m tests.soak, for example SOAK_ARGS='--minutes 3 --seed 1'.
SOAK_ARGS =
# Passed on to python -m tests.fuzz, for example FUZZ_ARGS='--seconds 600 npz'.
FUZZ_ARGS =
# Passed on to python -m tests.fuzz_sql, for example FUZZ_SQL_ARGS='--seconds 3600 --seed 1'.
FUZZ_SQL_ARGS =
# Passed on to tests/bench/bench.py, for example BENCH_ARGS='--full --json bench.json'.
BENCH_ARGS =
# Passed on to docs/notebooks/execute.py, for example NOTEBOOK_ARGS='--store autograd'.
NOTEBOOK_ARGS =

# Two workers take files of tests in turn, the longest first, each with a cluster of its own.
IN_PARALLEL = --numprocesses 2 --dist loadfile --no-loadscope-reorder

MAKEFLAGS += --no-print-directory
.NOTPARALLEL:

.PHONY: all
all: build

.PHONY: help
help:
	@echo 'make up           start (or reuse) a private cluster with the extension; its DSN is the last line of stdout'
	@echo 'make down         stop it; data stay'
	@echo 'make psql         open psql in it'
	@echo 'make demo         a GPT-2 that ships writes, is looked into, learns (the lines of TEXT=file) and forgets, in it'
	@echo 'make serve        what is in it over HTTP: a page for the browser, and OpenAI'"'"'s API; SERVE_ARGS="--port 8000" for other than 8642'
	@echo 'make load         load MODEL=gpt2 (-medium, -large, -xl, any GPT-2 of the hub, or a directory) into it'
	@echo 'make test         all tests that need no torch, in a throw-away cluster'
	@echo 'make test-avx2    those of generation, parity and documentation with a server that takes the CPU for one without AVX-512'
	@echo 'make test-distribution  those of the engine, and of the server those of test-avx2 and of training, with the NumPy of the distribution'
	@echo 'make test-oracle  compare live with torch, transformers and tokenizers'
	@echo 'make test-image   build the image of docker/Dockerfile without a container engine, and start it; needs root'
	@echo 'make fuzz         search for hostile input, a minute a parser; FUZZ_ARGS="--seconds 600 npz" for more or less'
	@echo 'make fuzz-sql     odd arguments for every function, on tampered rows, for two minutes; FUZZ_SQL_ARGS="--seconds 3600"'
	@echo 'make soak         30 minutes of everything at once, with cancels and kills, in a throw-away cluster; SOAK_ARGS="--minutes 3"'
	@echo 'make bench        time it beside its rivals and the bounds of the machine; BENCH_ARGS=--full for all'
	@echo 'make notebooks    run docs/notebooks and compare with what they hold; NOTEBOOK_ARGS=--store keeps the outputs'
	@echo 'make lint         ruff, mypy, shellcheck, hadolint, and whether what is generated is current'
	@echo 'make build        write the install script (pg_gpt2--*.sql) from sql/ and plpython/'
	@echo 'make install      install into the server that pg_config names (PG_CONFIG=...); may need root'
	@echo 'make dist         write the archive of a release for PGXN, from the committed files'
	@echo 'make clean        stop the private cluster, and delete it with its data, and the virtual environments'

.PHONY: build
build:
	@$(SYSTEM_PYTHON) build.py

# ---- the private cluster

.PHONY: up down psql
up: provision build
	@docker/cluster.sh up

down:
	@docker/cluster.sh down

psql: provision build
	@docker/cluster.sh psql

.PHONY: provision provision-test provision-notebooks provision-distribution provision-image
provision:
	@docker/provision.sh >/dev/null

provision-test:
	@docker/provision.sh test >/dev/null

provision-notebooks:
	@docker/provision.sh notebooks >/dev/null

provision-distribution:
	@docker/provision.sh distribution >/dev/null

provision-image:
	@docker/provision.sh image >/dev/null

# ---- virtual environments, one for each extra of pyproject.toml, made anew when that changes

.venv/%/complete: pyproject.toml | provision
	@echo "installing .[$*] in .venv/$*" >&2
	@rm -rf .venv/$*
	@$(SYSTEM_PYTHON) -m venv .venv/$* >&2
	@.venv/$*/bin/pip --disable-pip-version-check install --quiet --editable '.[$*]' >&2
	@touch $@

# ---- what runs in them

.PHONY: demo
TEXT =
demo: .venv/test/complete
	@dsn=$$($(MAKE) up) && .venv/test/bin/python -m loaders.demo --dsn "$$(echo "$$dsn" | tail -n 1)" $(if $(TEXT),--text '$(TEXT)')

.PHONY: serve
serve: .venv/test/complete
	@dsn=$$($(MAKE) up) && exec .venv/test/bin/python -m loaders.serve --dsn "$$(echo "$$dsn" | tail -n 1)" --shipped $(SERVE_ARGS)

.PHONY: load
MODEL = gpt2
load: .venv/test/complete
	@dsn=$$($(MAKE) up) && .venv/test/bin/python -m loaders.load_model --dsn "$$(echo "$$dsn" | tail -n 1)" '$(MODEL)'

.PHONY: test
test: provision-test build .venv/test/complete
	@docker/cluster.sh run tests/run.sh .venv/test/bin/python $(IN_PARALLEL) $(PYTEST_ARGS)

# Where the CPU or BLAS is another, other code runs, which must say the same: in generation, batches, drafts, first calls and documentation.
OTHER_CODE_TESTS = tests/server/docs tests/server/generation $(addprefix tests/server/test_, parity.py weight_file.py first_call.py)

# Without AVX-512 weights lie in rows.
.PHONY: test-avx2
test-avx2: provision-test build .venv/test/complete
	@PG_GPT2_CORETYPE=Haswell docker/cluster.sh run .venv/test/bin/python -m pytest $(OTHER_CODE_TESTS) $(IN_PARALLEL) $(PYTEST_ARGS)

# The README's installation brings the distribution's NumPy: an older one, with another BLAS (Debian 12: 1.24).
.PHONY: test-distribution
test-distribution: provision-test provision-distribution build .venv/test/complete
	@.venv/distribution/bin/python -c 'import pytest, hypothesis, xdist' 2>/dev/null || { $(SYSTEM_PYTHON) -m venv --system-site-packages .venv/distribution && \
	    .venv/distribution/bin/pip --disable-pip-version-check install --quiet pytest pytest-xdist hypothesis >&2; }
	@.venv/distribution/bin/python -m pytest tests/engine --ignore tests/engine/test_packaging.py $(IN_PARALLEL) $(PYTEST_ARGS)
	@PG_GPT2_NUMPY=distribution docker/cluster.sh run .venv/test/bin/python -m pytest $(OTHER_CODE_TESTS) \
	    tests/server/test_extension.py tests/server/test_train_run.py tests/server/test_replay_run.py $(IN_PARALLEL) $(PYTEST_ARGS)

.PHONY: test-image
test-image: provision-image build .venv/test/complete
	@tests/image/run.sh .venv/test/bin/python -m pytest tests/image $(PYTEST_ARGS)

.PHONY: fuzz
fuzz: .venv/test/complete
	@PYTHONPATH=plpython:. .venv/test/bin/python -m tests.fuzz $(FUZZ_ARGS)

.PHONY: fuzz-sql
fuzz-sql: provision-test build .venv/test/complete
	@PYTHONPATH=plpython:. docker/cluster.sh run .venv/test/bin/python -m tests.fuzz_sql $(FUZZ_SQL_ARGS)

.PHONY: soak
soak: provision-test build .venv/test/complete
	@PYTHONPATH=plpython:. docker/cluster.sh run .venv/test/bin/python -m tests.soak $(SOAK_ARGS)

.PHONY: test-oracle
test-oracle: provision build .venv/oracle/complete
	@docker/cluster.sh run .venv/oracle/bin/python -m pytest tests/oracle $(IN_PARALLEL) $(PYTEST_ARGS)

.PHONY: bench
bench: .venv/oracle/complete
	@dsn=$$($(MAKE) up) && .venv/oracle/bin/python tests/bench/bench.py --dsn "$$(echo "$$dsn" | tail -n 1)" $(BENCH_ARGS)

.PHONY: notebooks
notebooks: provision-notebooks build .venv/notebooks/complete
	@docker/cluster.sh run .venv/notebooks/bin/python docs/notebooks/execute.py $(NOTEBOOK_ARGS)

.PHONY: lint
lint: .venv/lint/complete
	@.venv/lint/bin/ruff check
	@.venv/lint/bin/ruff format --check
	@.venv/lint/bin/mypy
	@.venv/lint/bin/shellcheck docker/*.sh tests/*.sh tests/image/*.sh tests/image/base/*.sh .ci/run
	@.venv/lint/bin/hadolint docker/Dockerfile tests/image/base/Dockerfile
	@$(SYSTEM_PYTHON) build.py --check

# ---- a release: PGXN wants a zip whose one directory has name and version

.PHONY: dist
dist: build
	@version=$$(sed -n 's/^   "version": "\(.*\)",/\1/p' META.json) && mkdir -p dist && \
	    git archive --format zip --prefix "$(EXTENSION)-$$version/" -o "dist/$(EXTENSION)-$$version.zip" HEAD && \
	    echo "dist/$(EXTENSION)-$$version.zip"

# ---- installation into an existing server (PGXS where the server's development files are there, else the same by hand)

installing = $(filter install uninstall installcheck installdirs,$(MAKECMDGOALS))
PGXS := $(if $(installing),$(wildcard $(shell $(PG_CONFIG) --pgxs)))
ifneq ($(PGXS),)
include $(PGXS)
else
.PHONY: install uninstall
extension_directory = $(DESTDIR)$(shell $(PG_CONFIG) --sharedir)/extension
install: all
	install -d '$(extension_directory)'
	install -m 644 $(EXTENSION).control $(DATA) '$(extension_directory)/'

uninstall:
	rm -f '$(extension_directory)/$(EXTENSION).control' $(addprefix '$(extension_directory)'/,$(DATA))

.PHONY: clean
clean:
	@docker/cluster.sh remove
	rm -rf .venv
endif
