#!/usr/bin/env bash
# `make bench`: measures with two separate Redis, and removes them.
set -euo pipefail
cd "$(dirname "$0")/.."

export COMPOSE_PROJECT_NAME=celery-stack-bench COMPOSE_PROFILES=
trap 'scripts/down.sh --volumes >/dev/null 2>&1' EXIT
trap 'exit 130' INT
docker compose up --detach --wait redis redis-results >/dev/null 2>&1
scripts/run.sh --no-TTY --volume "$PWD/bench:/bench:ro" --env PYTHONPATH=/app:/bench client \
    python -c 'import protections; protections.main()'
