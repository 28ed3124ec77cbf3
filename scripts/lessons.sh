#!/usr/bin/env bash
# `make lessons`: runs the whole tour on the running stack and writes docs/lessons/ from its results.
set -euo pipefail
trap 'exit 130' INT
cd "$(dirname "$0")/.."

record=$(mktemp)
trap 'rm -f "$record"' EXIT
scripts/run.sh --no-TTY -e GRAFANA_ADDRESS="$(scripts/address.sh grafana 3000)" client python -m tour --json >"$record"
mkdir -p docs/lessons
# The pages contain the lessons' source, so they are written on the host.
cd services/celery
../../.venv/bin/python -m tour.page "$record" ../../docs/lessons
