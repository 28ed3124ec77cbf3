#!/usr/bin/env bash
# `make lock`: writes each requirements.txt from its requirements.in, every package pinned and hashed, no address in it.
set -euo pipefail

lock() { # folder, options
    (cd "$1" && env -u PIP_FIND_LINKS -u UV_FIND_LINKS ../"$2".venv/bin/uv pip compile requirements.in --output-file requirements.txt \
        --upgrade --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --quiet "${@:3}")
}

lock services/celery ../ --python-version 3.13
lock services/queue-exporter ../ --python-version 3.13
lock offline/celery-exporter ../ --python-version 3.13
lock tests "" --python-version 3.11 --universal # the host's Python
