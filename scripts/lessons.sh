#!/usr/bin/env bash
# `make lessons`: takes the whole tour on the running stack and writes docs/lessons/ from what was seen.
set -euo pipefail
cd "$(dirname "$0")/.."

record=$(mktemp)
trap 'rm -f "$record"' EXIT
docker compose run --rm --no-deps --no-TTY -e GRAFANA_ADDRESS="$(scripts/grafana.sh)" client python client.py --json >"$record"
mkdir -p docs/lessons
# The pages show the lessons' source, so they are written here; the app wants an address, and connects to none.
cd services/celery
export REDIS_BROKER_URL=redis://nobody:nothing@127.0.0.1:1/0 REDIS_RESULTS_URL=redis://nobody:nothing@127.0.0.1:1/0
../../.venv/bin/python -m tour.page "$record" ../../docs/lessons
