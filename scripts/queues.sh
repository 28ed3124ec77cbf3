#!/usr/bin/env bash
# `make queues`: writes what follows from services/celery/queues.py, if that table is not the one that it was written from.
# Then dashboards know a new queue too, where their tools (.venv) are there or can be had.
set -euo pipefail
cd "$(dirname "$0")/.."

TABLE=services/celery/queues.py
NOTE=.cache/queues # the table that all was written from

if cmp -s "$TABLE" "$NOTE"; then exit 0; fi
if ! command -v python3 >/dev/null; then
    [ -f "$NOTE" ] || exit 0 # a fresh clone: everything is as the table says
    echo "queues: $TABLE has changed, and writing what follows from it needs python3: install it, then make up." >&2
    exit 1
fi
changed=$(python3 scripts/queues.py)
if [ -n "$changed" ]; then
    echo "$changed"
    make --no-print-directory dashboards || echo "queues: the dashboards do not show the change yet: make dashboards" >&2
fi
mkdir -p "$(dirname "$NOTE")"
cp "$TABLE" "$NOTE"
