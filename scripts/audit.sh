#!/usr/bin/env bash
# `make audit`: looks up each locked Python package in a database of known vulnerabilities, over the internet.
set -euo pipefail
trap 'exit 130' INT
cd "$(dirname "$0")/.."

log=$(mktemp)
trap 'rm -f "$log"' EXIT
found=0
locks=(services/*/requirements.txt packages/*/*requirements.txt offline/celery-exporter/{requirements,exporter}.txt tests/requirements.txt)
locks+=(bench/requirements.txt) # demo
for lock in "${locks[@]}"; do
    echo "audit: $lock"
    # --disable-pip: all is pinned, so nothing has to be resolved. --strict: a package that is not found was not audited.
    if .venv/bin/pip-audit --requirement "$lock" --require-hashes --disable-pip --strict --progress-spinner=off 2>"$log"; then continue; fi
    if ! grep -q '^Found ' "$log"; then
        reason=$(tail -n 1 "$log" | sed -E 's/^ERROR:[^:]*://; s/ on PyPI.*//; s/: HTTP.*//; s/.*[.](\w+)$/\1/')
        echo "audit: no answer from the vulnerability service ($reason)" >&2
        exit 2
    fi
    found=1
done
exit "$found"
