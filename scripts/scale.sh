#!/usr/bin/env bash
# `make scale LOW=4 [HIGH=2] …`: sets the number of worker containers of queues, now and in .env, so that a later `make up`
# keeps it. Arguments: <QUEUE>=<number>, the queue as in .env's WORKER_<QUEUE>_REPLICAS.
set -euo pipefail
trap 'exit 130' INT

queues=$(sed -n 's/^WORKER_\(.*\)_REPLICAS=.*/\1/p' .env)
fail() { echo "scale: $*" >&2; exit 2; }

services=()
for argument in "$@"; do
    queue=${argument%%=*} count=${argument#*=}
    grep -qxF "$queue" <<<"$queues" || fail "$queue is not a queue; choose from: $(tr '\n' ' ' <<<"$queues")"
    [[ $count =~ ^[0-9]{1,3}$ ]] || fail "$queue=$count is not a number of containers (0 to 999)."
    services+=("worker-$(tr A-Z_ a-z- <<<"$queue")")
done
[ "${#services[@]}" -gt 0 ] || fail "no number given: make scale $(head -n 1 <<<"$queues")=2"
for argument in "$@"; do
    knob=WORKER_${argument%%=*}_REPLICAS
    # replaced in one step: a full disk leaves no part of it
    { cp -p .env .env.new && sed "s/^$knob=.*/$knob=${argument#*=}/" .env >.env.new && mv -f .env.new .env; } ||
        { rm -f .env.new; fail ".env could not be written; the reason is above. It was not changed."; }
done
# --no-recreate: running containers continue, even if other lines of .env have changed.
docker compose up --detach --no-recreate --wait "${services[@]}"
docker compose ps "${services[@]}" --format 'table {{.Service}}\t{{.Name}}\t{{.Status}}'
