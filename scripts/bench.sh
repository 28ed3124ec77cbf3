#!/usr/bin/env bash
# `make bench`, `make bench-quick`: runs a plan of bench/plans.py in a container, with a Redis of its own; the plan `full`
# first measures the stack's own containers. Results are written to bench/results/<plan>. `bench.sh build` builds the image.
set -euo pipefail
cd "$(dirname "$0")/.."

export PLAN=$1 COMMAND=${2:-} COMPOSE_PROJECT_NAME=celery-stack-bench
results=bench/results/$PLAN
bench() { docker compose --project-directory . --file bench/compose.yaml --progress quiet "$@"; }
if [ "$PLAN" = build ]; then
    bench build --quiet bench
    exit
fi
rm -rf "$results"
install -d -m 755 bench/results "$results" # the container reads it with its own user
stack_down() { # a network that Docker does not remove (moby/moby#42119) is no reason to stop
    local output
    output=$(COMPOSE_FILE=compose.yaml:bench/stack.yaml scripts/down.sh --volumes 2>&1) ||
        echo "bench: not all of the stack was removed: ${output##*$'\n'}"
}
trap 'bench down --volumes --timeout 1; stack_down' EXIT
trap 'exit 130' INT

echo "bench: the plan $PLAN; on a machine that does something else the numbers vary more"
bench build --quiet bench
if [ "$PLAN" = full ]; then
    .venv/bin/python -m bench.stack "$results/stack.json"
    stack_down
fi
bench up --detach
container=$(bench ps --all --quiet bench)
docker logs --follow "$container"
code=$(docker inspect --format '{{.State.ExitCode}}' "$container")
docker cp --quiet "$container:/results/." "$results"
if [ "$PLAN" = full ] && [ "$code" = 0 ]; then .venv/bin/python -m bench.page "$PLAN"; fi
exit "$code"
