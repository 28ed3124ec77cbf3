#!/usr/bin/env bash
# `make queues`: updates the files that depend on services/celery/queues.py, if that table has changed since the last
# run. Then it also updates the dashboards, if their tools (.venv) are available.
set -euo pipefail
trap 'exit 130' INT
cd "$(dirname "$0")/.."

TABLE=services/celery/queues.py
NOTE=.cache/queues # copy of the table at the last run

if cmp -s "$TABLE" "$NOTE"; then exit 0; fi
if ! command -v python3 >/dev/null; then
    [ -f "$NOTE" ] || exit 0 # a fresh clone: all files are up to date
    echo "queues: $TABLE has changed, and updating the files that depend on it needs python3: install it, then make up." >&2
    exit 1
fi
changed=$(python3 scripts/queues.py)
if [ -n "$changed" ]; then
    echo "$changed"
    make --no-print-directory dashboards || echo "queues: the dashboards are not updated; run make dashboards" >&2
fi
mkdir -p "$(dirname "$NOTE")"
cp "$TABLE" "$NOTE"
