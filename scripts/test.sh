#!/usr/bin/env bash
# `make test` and `make test-all`: one part after the other, up to the first that fails. Each says how far it is.
set -euo pipefail
cd "$(dirname "$0")/.."

STARTED=$(date +%s)
export STARTED PART

# What each part runs. `make test` is the first three of `make test-all`.
lint() { make --no-print-directory lint; }
# Several at a time: most of them wait for workers and Redis of their own. A module's tests share theirs.
unit() { .venv/bin/pytest -n 4 --dist loadscope packages tests/unit -m 'not installed'; }
stack() { .venv/bin/pytest tests/stack tests/faults -m main; }
more() { .venv/bin/pytest tests/stack tests/faults -m 'not main'; }
installed() { .venv/bin/pytest packages -m installed; } # demo
docs() { .venv/bin/pytest tests/readme; } # demo

parts=(lint unit stack)
if [ "${1:-}" = all ]; then
    parts+=(more)
    parts+=(installed docs) # demo
fi

elapsed() { local seconds=$(($(date +%s) - STARTED)); printf '%d:%02d' $((seconds / 60)) $((seconds % 60)); }

for number in "${!parts[@]}"; do
    part=${parts[number]}
    PART="$((number + 1))/${#parts[@]} $part"
    printf '\n== %s, %s since the start\n' "$PART" "$(elapsed)"
    "$part" || { printf '\n%s failed, %s since the start. The parts after it did not run.\n' "$PART" "$(elapsed)" >&2; exit 1; }
done
printf '\nAll %s parts passed in %s.\n' "${#parts[@]}" "$(elapsed)"
