#!/usr/bin/env bash
# `make test` and `make test-all`: runs the parts in order, up to the first that fails, and prints the progress.
set -euo pipefail
cd "$(dirname "$0")/.."

STARTED=$(date +%s)
export STARTED PART

# The parts. `make test` is the first three of `make test-all`.
lint() { make --no-print-directory lint; }
# In parallel: most tests wait for their own workers and Redis, which the tests of a module share.
unit() { .venv/bin/pytest -n 4 --dist loadscope packages tests/unit -m 'not installed and not upstream'; }
on_stack=(tests/stack)
on_stack+=(tests/faults) # demo
stack() { .venv/bin/pytest "${on_stack[@]}" -m main; }
more() { .venv/bin/pytest "${on_stack[@]}" -m 'not main'; }
installed() { .venv/bin/pytest packages -m installed; } # demo
docs() { .venv/bin/pytest tests/readme; } # demo

parts=(lint unit stack)
if [ "${1:-}" = all ]; then
    parts+=(more)
    parts+=(installed docs) # demo
fi

elapsed() { local seconds=$(($(date +%s) - STARTED)); printf '%d:%02d' $((seconds / 60)) $((seconds % 60)); }

trap 'printf "\n%s interrupted, %s since the start.\n" "$PART" "$(elapsed)" >&2; exit 130' INT
for number in "${!parts[@]}"; do
    part=${parts[number]}
    PART="$((number + 1))/${#parts[@]} $part"
    printf '\n== %s, %s since the start\n' "$PART" "$(elapsed)"
    "$part" || { printf '\n%s failed, %s since the start. The parts after it did not run.\n' "$PART" "$(elapsed)" >&2; exit 1; }
done
printf '\nAll %s parts passed in %s.\n' "${#parts[@]}" "$(elapsed)"
