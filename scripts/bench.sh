#!/usr/bin/env bash
# `make bench`, `make bench-quick`: runs a plan of bench/plans.py in a container, with a Redis of its own. Results are
# written to bench/results/<plan>.
set -euo pipefail
cd "$(dirname "$0")/.."

export PLAN=$1 COMMAND=$2 COMPOSE_PROJECT_NAME=celery-stack-bench
results=bench/results/$PLAN
bench() { docker compose --project-directory . --file bench/compose.yaml --progress quiet "$@"; }
trap 'bench down --volumes --timeout 1' EXIT
trap 'exit 130' INT

bench build --quiet bench
echo "bench: the plan $PLAN; on a machine that does something else the numbers vary more"
bench up --detach
bench logs --follow --no-log-prefix bench
code=$(bench wait bench) || true
rm -rf "$results"
mkdir -p "$results"
bench cp bench:/results/. "$results"
exit "$code"
