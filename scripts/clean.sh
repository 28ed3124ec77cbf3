#!/usr/bin/env bash
# `make clean`: removes this project's containers, networks and volumes: queues, results, the index, metrics.
set -euo pipefail
trap 'exit 130' INT

project=$(docker compose config --format json | sed -n 's/^  "name": "\(.*\)",*$/\1/p')
if [ "${FORCE:-}" != 1 ]; then
    read -r -p "Remove all containers and DATA of '$project' (queues, results, index, metrics)? [y/N] " answer || answer=
    [[ $answer == [yY]* ]] || { echo "Nothing removed."; exit 1; }
fi
scripts/down.sh --volumes --remove-orphans
