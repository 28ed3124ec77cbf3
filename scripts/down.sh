#!/usr/bin/env bash
# `make down` and `make clean`: removes this project's containers and networks; the arguments are options of compose's
# `down`. That leaves the containers of commands in other shells, such as `make shell`, with the networks that they use:
# first these are stopped, while Redis still runs.
set -euo pipefail
trap 'exit 130' INT

project=$(docker compose config --format json | sed -n 's/^  "name": "\(.*\)",*$/\1/p')
label=label=com.docker.compose
commands=$(docker ps --all --quiet --filter "$label.project=$project" --filter "$label.oneoff=True")
if [ -n "$commands" ]; then
    # shellcheck disable=SC2086 # words
    docker inspect --format 'down: ending {{printf "%.60q" (join .Config.Cmd " ")}}' $commands 2>/dev/null || true
    xargs docker stop <<<"$commands" >/dev/null 2>&1 || true # each may end, and be removed, by itself
    xargs docker rm --force <<<"$commands" >/dev/null 2>&1 || true
fi
echo "down: stopping and removing the containers"
docker compose --profile '*' down "$@" 2> >(grep -vE '^ *(Container|Network|Volume) .* ((Stopp|Remov)(ing|ed)|Error while \w+) *$' >&2)
