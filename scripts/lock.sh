#!/usr/bin/env bash
# `make lock`: writes each requirements.txt from its requirements.in: packages pinned and hashed, without index URLs.
set -euo pipefail
trap 'exit 130' INT

lock() { # folder, name of the .in file, options
    local uv=$PWD/.venv/bin/uv
    (cd "$1" && env -u PIP_FIND_LINKS -u UV_FIND_LINKS "$uv" pip compile "$2.in" --output-file "$2.txt" \
        --upgrade --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --quiet "${@:3}")
}

lock services/celery requirements --python-version 3.13
lock packages/celery-durable build-requirements --python-version 3.13
lock services/queue-exporter requirements --python-version 3.13
lock offline/celery-exporter requirements --python-version 3.13
lock tests requirements --python-version 3.11 --universal # the host's Python
lock bench requirements --python-version 3.13 --constraint ../services/celery/requirements.txt # demo
