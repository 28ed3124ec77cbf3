#!/usr/bin/env bash
# `make scale [HIGH=n] [LOW=n]`: sets the number of worker containers, now and in .env, so that a later `make up` keeps it.
set -euo pipefail

[ -n "${HIGH}${LOW}" ] || { echo "scale: say how many: make scale HIGH=2, LOW=4 or both." >&2; exit 2; }
services=()
for knob in HIGH LOW; do
    count=${!knob}
    [ -n "$count" ] || continue
    [[ $count =~ ^[0-9]{1,3}$ ]] || { echo "scale: $knob=$count is not a number of containers (0 to 999)." >&2; exit 2; }
    sed -i "s/^WORKER_${knob}_REPLICAS=.*/WORKER_${knob}_REPLICAS=$count/" .env
    services+=("worker-${knob,,}")
done
# --no-recreate: the containers that run go on, whatever else was edited in .env.
docker compose up --detach --no-recreate --wait "${services[@]}"
docker compose ps worker-high worker-low --format 'table {{.Service}}\t{{.Name}}\t{{.Status}}'
