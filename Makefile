# One word a habit. Each target makes the environment it needs; a second call finds it made.

PORT ?= 8000
PYTHON := .venv/bin/python
PYTEST := $(PYTHON) -m pytest
WORKERS ?= 2
ARGS ?=

RUN := .venv/run.stamp
DEV := .venv/dev.stamp

.DEFAULT_GOAL := help
.PHONY: help demo demo-stop run test test-all check e2e faults soak bench openapi format lock clean

help: ## show this list
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | column -t -s '|' 2>/dev/null || \
		sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  make \1  \2/p' $(MAKEFILE_LIST)

$(RUN): requirements/uv.txt requirements/run.txt .ci/environment
	@.ci/environment run

$(DEV): requirements/uv.txt requirements/run.txt requirements/dev.txt .ci/environment
	@.ci/environment dev

demo: $(RUN) ## a seeded installation on http://127.0.0.1:8000 (PORT=8001, DETACH=1 to return at once)
	@PUBLIC_URL=http://127.0.0.1:$(PORT) $(PYTHON) manage.py demo --port $(PORT) $(if $(filter-out 0 no,$(DETACH)),--detach)

demo-stop: $(RUN) ## end a demo that was started with DETACH=1
	@$(PYTHON) manage.py demo --stop

run: $(RUN) ## the production-shaped server, against DATABASE_URL and REDIS_URL
	@$(PYTHON) manage.py serve --port $(PORT)

test: $(DEV) ## the whole suite on PostgreSQL and Redis, then what touches the database on SQLite
	$(PYTEST) -n $(WORKERS) --durations=20 --ignore=tests/e2e $(ARGS)
	$(PYTEST) -n $(WORKERS) --database=sqlite --ignore=tests/e2e $(ARGS)

# The whole suite calls by one door, tests/api then by the other one as well.
test-all: $(DEV) ## the same on every database at hand, and every API test through both doors
	$(PYTEST) -n $(WORKERS) --postgres=machine --door=django --ignore=tests/e2e $(ARGS)
	$(PYTEST) -n $(WORKERS) --postgres=machine --door=fast tests/api $(ARGS)
	$(PYTEST) -n $(WORKERS) --postgres=wheel --door=django --ignore=tests/e2e $(ARGS)
	$(PYTEST) -n $(WORKERS) --postgres=wheel --door=fast tests/api $(ARGS)
	$(PYTEST) -n $(WORKERS) --database=sqlite --door=fast --ignore=tests/e2e $(ARGS)
	$(PYTEST) -n $(WORKERS) --database=sqlite --door=django tests/api $(ARGS)

check: $(DEV) ## lint, types, import contracts, Django's checks, migrations, OpenAPI drift, templates
	@.ci/check

e2e: $(DEV) ## the browser suite in a real Chromium
	.ci/chromium $(PYTEST) tests/e2e $(ARGS)

faults: $(DEV) ## the long fault runs on both databases; writes their table into docs/reliability.md
	@rm -f var/faults.jsonl; mkdir -p var
	LICENTIA_SOAK=1 LICENTIA_FAULTS_TABLE=$(CURDIR)/var/faults.jsonl $(PYTEST) tests/faults --durations=20 $(ARGS)
	LICENTIA_SOAK=1 LICENTIA_FAULTS_TABLE=$(CURDIR)/var/faults.jsonl $(PYTEST) tests/faults --durations=20 --database=sqlite $(ARGS)
	LICENTIA_SOAK=1 $(PYTHON) -m tests.faults.table var/faults.jsonl

LONG_BILLING := tests/billing/test_rollout.py tests/billing/test_switches.py

soak: $(DEV) ## the long domain, concurrency, billing and security runs; each defence taken away, to see a test notice
	LICENTIA_SOAK=1 $(PYTEST) tests/domain tests/concurrency tests/security tests/anomalies tests/api/test_schemathesis.py tests/billing/test_pricing.py $(LONG_BILLING) --durations=20 $(ARGS)
	LICENTIA_SOAK=1 $(PYTEST) --database=sqlite tests/domain $(LONG_BILLING) --durations=20 $(ARGS)
	$(PYTHON) -m tests.security.mutations

bench: $(DEV) ## measure the figures of docs against their goals (ONLY=validate,usage for a part)
	$(PYTHON) -m benchmarks $(if $(ONLY),--only $(ONLY)) $(ARGS)

openapi: $(DEV) ## rewrite docs/api/openapi.yaml from the code
	@.ci/openapi write

format: $(DEV) ## let ruff and djlint write what make check would ask for
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .
	-$(PYTHON) -m djlint --reformat --quiet templates

lock: $(DEV) ## re-make requirements/*.txt from pyproject.toml (UPGRADE=1 for the newest versions)
	@.ci/lock

clean: ## remove the environment and every cache; var/ with its data and keys stays
	@if [ -x $(PYTHON) ] && [ -f $(RUN) ]; then $(PYTHON) manage.py demo --stop; fi
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .schemathesis staticfiles
	find . -path ./var -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
