# `make help` lists the targets; they are implemented in scripts/ and compose.yaml.
SHELL := /bin/bash
.DEFAULT_GOAL := help
# Even with `make -j`: what is checked first must be done first.
.NOTPARALLEL:
COMPOSE := docker compose
RUN := scripts/run.sh
CLIENT := $(RUN) client
FAULTS := PYTHONPATH=tests:services/celery:packages/celery-durable .venv/bin/python -m # demo

##@ Run the stack

.PHONY: up
up: check build ## Start everything, try it, print addresses; V=1 shows compose's output
	@scripts/up.sh

.PHONY: check
check: engine env ## List all that is wrong with settings, ports and files; changes nothing that runs
	@python3 scripts/check.py

# What acts on the whole project: without .env its name is unknown, and it may be another folder's.
.PHONY: owner
owner:
	@python3 scripts/check.py owner

# >>> demo
.PHONY: new
new: venv ## Create your own stack in a new folder, without the demo: make new DIR=../shop
	@.venv/bin/python scripts/new.py '$(DIR)'

# <<< demo
.PHONY: down
down: owner .env ## Stop and remove the containers; data is kept
	@scripts/down.sh

.PHONY: clean
clean: owner .env ## Stop and remove the containers and all data (asks first; FORCE=1 does not)
	@scripts/clean.sh

.PHONY: urls
urls: .env ## Addresses and logins
	@scripts/urls.sh

.PHONY: rotate
rotate: check build ## Replace the passwords in secrets/, or one: make rotate [SECRET=flower_password]
	@scripts/env.sh '$(or $(SECRET),all)'
	@scripts/logins.sh
	@scripts/up.sh

##@ Look and try

.PHONY: ps
ps: .env ## Containers, their state and health
	@$(COMPOSE) ps --all --format 'table {{.Service}}\t{{.Name}}\t{{.Status}}'

.PHONY: logs
logs: .env ## Follow the logs: make logs [S=worker-low]
	@$(COMPOSE) logs --follow --tail=50 $(S)

.PHONY: scale
scale: .env ## Worker containers of a queue: make scale LOW=4 [HIGH=2]; kept in .env
	@scripts/scale.sh $(MAKEOVERRIDES)

.PHONY: inspect
inspect: .env ## What each worker runs, and what it has prefetched
	@$(CLIENT) bash -c 'celery -A celery_app inspect active; celery -A celery_app inspect reserved'

.PHONY: celery
celery: .env ## Any celery command: make celery ARGS="inspect stats"
	@$(CLIENT) celery -A celery_app $(or $(ARGS),status)

.PHONY: dlq
dlq: .env ## Dead letters: make dlq [ARGS="show ID"|"requeue …"|"drop …"|--help]
	@$(CLIENT) python -m celery_durable -A celery_app dlq $(or $(ARGS),list)

.PHONY: delayed
delayed: .env ## Messages that wait for their ETA: make delayed [ARGS="run ID"|"cancel ID"|"give-up --all"|--help]
	@$(CLIENT) python -m celery_durable -A celery_app delayed $(or $(ARGS),list)

.PHONY: shell
shell: .env ## A shell in a container with the app and its tasks
	@$(CLIENT) bash

##@ Check

.PHONY: test
test: build venv ## Lint, types, unit tests, rules, and the stack's main promises; needs no running stack
	@scripts/test.sh

.PHONY: test-all
test-all: build venv ## All tests, beginning with those of `make test`
	@scripts/test.sh all

.PHONY: test-unit
test-unit: images venv lint ## Lint, types, unit tests, rules, generated files; one file: T=tests/unit/test_X.py
	@.venv/bin/pytest $(or $(T),-n 4 --dist loadscope packages tests/unit -m 'not installed and not upstream')

.PHONY: test-stack
test-stack: build venv ## Tests of a running stack; one file: T=tests/stack/test_health.py, KEEP=1 keeps it running
	@.venv/bin/pytest $(or $(T),tests/stack)

# >>> demo
.PHONY: test-upstream
test-upstream: venv ## kombu's and Celery's own tests with the library, 45 minutes; one file: T=canvas
	@.venv/bin/pytest -s packages/celery-durable/tests/upstream $(if $(T),-k '$(T)')

# <<< demo
.PHONY: lint
lint: venv ## Style and types of Python, shell scripts and Dockerfiles
	@.venv/bin/ruff check --quiet . && .venv/bin/ruff format --quiet --check .
	@.venv/bin/mypy
	@.venv/bin/shellcheck scripts/*.sh offline/*.sh offline/redis/docker-entrypoint.sh services/celery/http-ok $(wildcard .ci/run)
	@.venv/bin/hadolint services/*/Dockerfile offline/*/Dockerfile

.PHONY: audit
audit: venv ## Look up the locked Python packages in a database of vulnerabilities
	@scripts/audit.sh

.PHONY: sbom
sbom: build venv ## Write the packages in each image to sbom/ (CycloneDX)
	@.venv/bin/python scripts/sbom.py $$($(COMPOSE) config --images | sort -u)

.PHONY: fmt
fmt: venv ## Format the Python code
	@.venv/bin/ruff check --fix --quiet . ; .venv/bin/ruff format .

# >>> demo
##@ The demo

.PHONY: tour
tour: .env ## The guided tour, each Celery concept as a live lesson: make tour [LESSON=list|chords] [PAUSE=1]
	@$(RUN) -e COLUMNS -e NO_COLOR -e PAUSE='$(PAUSE)' -e GRAFANA_ADDRESS="$$(scripts/address.sh grafana 3000)" client python -m tour $(LESSON)

.PHONY: client
client: .env ## How tasks are called: runs services/celery/client.py and prints each call with its result
	@$(CLIENT) python client.py

.PHONY: ask
ask: .env ## Ask the demo's search for a word, and see the task's way through the stack: make ask WORD=import
	@$(RUN) -e FLOWER_ADDRESS="$$(scripts/address.sh flower 5555)" client python ask.py '$(WORD)'

.PHONY: load
load: .env ## Traffic in addition to the producer's: make load TRAFFIC=flood [FOR=60s]
	@$(RUN) --use-aliases -e TRAFFIC='$(or $(TRAFFIC),flood)' -e FOR='$(or $(FOR),60s)' producer

.PHONY: chaos
chaos: .env venv ## Inject a fault into the running stack: make chaos FAULT=worker-kill; without FAULT: the list
	@$(FAULTS) faults.chaos '$(FAULT)'

.PHONY: lessons
lessons: venv ## Write docs/lessons/ from a run of the tour on the running stack
	@scripts/lessons.sh

##@ Measure

.PHONY: test-faults
test-faults: build venv ## Every fault, about 40 minutes; OUTBOX=no, PEER=celery|celery-redis-plus, WITHOUT=…|all: docs/delivery.md
	@$(if $(PEER),scripts/bench.sh build)
	@FAULTS=all OUTBOX='$(OUTBOX)' PEER='$(PEER)' WITHOUT='$(WITHOUT)' .venv/bin/pytest tests/faults

.PHONY: soak
soak: build venv ## Random faults under load; KILLS=15s, FLEET=mixed: docs/delivery.md; make soak [FOR=30m] [SEED=7]
	@$(FAULTS) $(if $(FLEET),faults.fleet '$(or $(KILLS),15s)',$(if $(KILLS),faults.kills '$(KILLS)',faults.soak)) '$(or $(FOR),30m)' '$(or $(SEED),7)'

.PHONY: bench
bench: build venv ## Measure speed beside stock Celery and others, over an hour; docs/performance.md
	@scripts/bench.sh full 'make bench'

.PHONY: bench-quick
bench-quick: build ## The main measurements, about 5 minutes
	@scripts/bench.sh '$(or $(PLAN),quick)' 'make bench-quick$(if $(PLAN), PLAN=$(PLAN))'

# <<< demo

##@ Build

.PHONY: engine
engine: ## Find a container engine with Compose v2, or set one up (SETUP=0 forbids)
	@scripts/engine.sh

.env: .env.example
	@scripts/env.sh

.PHONY: env
env: queues ## Create .env and the secrets, once
	@scripts/env.sh

.PHONY: queues
queues: ## Update the files that depend on the table of queues, services/celery/queues.py
	@scripts/queues.sh

.PHONY: images
images: engine env ## Get third-party images: present, pulled, or built from offline/ if no registry answers
	@scripts/images.sh

.PHONY: build
build: images ## Build our own images
	@echo "build: the images of services/ (about a minute the first time)"
	@$(COMPOSE) build --quiet beat queue-exporter
	@scripts/logins.sh

.PHONY: dashboards
dashboards: venv ## Write grafana/dashboards/ from grafana/src/
	@cd grafana/src && PYTHONPATH=../../services/celery ../../.venv/bin/python -m dashboards

.PHONY: lock
lock: venv ## Update the pins of all Python dependencies, with hashes
	@scripts/lock.sh

.PHONY: venv
venv: # The Python environment of the checks, .venv
	@scripts/venv.sh

.PHONY: help
help: ## This list
	@awk 'BEGIN { FS = ":.*## " } /^##@/ { printf "\n%s\n", substr($$0, 5) } /^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile
