#!/usr/bin/env bash
# Creates .env from .env.example, and the secrets, once; existing ones are not changed, except the passwords that `make
# rotate` replaces: `env.sh all`, or `env.sh flower_password`. Renders Redis' users from services/redis/*.acl.template when
# a template or a password has changed. Each file is written in one step: a full disk leaves no part of one.
set -euo pipefail
trap 'exit 130' INT
cd "$(dirname "$0")/.."

fail() { printf 'env: %s\n' "$@" >&2; exit 1; }

names=(redis_celery redis_exporter flower grafana prometheus alertmanager)
passwords=("${names[@]/%/_password}")
replaced=${1:-}
# Not a pipe: grep -q ends at the first match, which may end printf with SIGPIPE, and pipefail makes that a failure.
if [ -n "$replaced" ] && ! grep -qxF -e "$replaced" < <(printf '%s\n' all "${passwords[@]}"); then
    fail "SECRET=$replaced: there is no such password; choose one of" "${passwords[@]}"
fi

unwritten() { rm -f "$2"; fail "$1 could not be written; the reason is above. It was not changed."; }

# Replaces .env with what is on stdin.
replace() {
    if [ -e .env ]; then cp -p .env .env.new || unwritten .env .env.new; fi # its mode
    { cat >.env.new && mv -f .env.new .env; } || unwritten .env .env.new
}

if [ ! -e .env ]; then
    replace <.env.example
    echo "env: created .env from .env.example"
fi
# Settings that are in .env.example but not in .env are added with their defaults; the others are not changed. A line
# with spaces counts: `make check` says what is wrong with it.
added=$(grep -E '^[A-Z_]+=' .env.example | while IFS= read -r line; do
    grep -qE "^[[:space:]]*(export[[:space:]]+)?${line%%=*}[[:space:]]*=" .env || echo "$line"
done)
if [ -n "$added" ]; then
    # awk ends the last line if it has no end
    { awk 1 .env && echo "$added"; } | replace
    while IFS= read -r line; do echo "env: added to .env: $line (.env.example explains it)"; done <<<"$added"
fi

# With umask 077 git creates files that only the owner may read. Containers read these with their own users: mounted, or
# copied into images with the host's file modes.
folders=(grafana offline packages prometheus services tests)
folders+=(bench) # demo
find "${folders[@]}" -name __pycache__ -prune -o \
    \( -type d ! -perm -005 -o -type f ! -perm -004 \) -exec chmod a+rX {} + ||
    fail "containers must be able to read these files, but their modes could not be changed; the reason is above."

# Access is limited on the folder, not the files: a container reads a secret with the host's file mode and its own uid.
mkdir -p secrets
chmod 700 secrets

# $1: file in secrets/, its content on stdin. Replaced atomically, and only if it has changed.
write() {
    local new=secrets/.$1.new
    cat >"$new" || unwritten "secrets/$1" "$new"
    if cmp -s "$new" "secrets/$1"; then rm "$new"; return; fi
    { chmod 444 "$new" && mv -f "$new" "secrets/$1"; } || unwritten "secrets/$1" "$new"
    echo "env: created secrets/$1"
}

for name in "${passwords[@]}"; do
    if [ -s "secrets/$name" ] && [ "$replaced" != all ] && [ "$replaced" != "$name" ]; then continue; fi
    # letters and digits only, so that it needs no quoting in a URL
    head -c 256 /dev/urandom | base64 | tr -dc 'A-Za-z0-9' | cut -c -32 | tr -d '\n' | write "$name"
done

sha256() { if command -v sha256sum >/dev/null; then sha256sum; else shasum -a 256; fi; }
hash_of() { sha256 <"secrets/$1" | cut -d ' ' -f 1; }
for instance in broker results; do
    # an aclfile has one user per line and no comments
    awk '/^ *(#|$)/ { next } /^ / { sub(/^ +/, " "); printf "%s", $0; next } { printf "%s%s", (users++ ? "\n" : ""), $0 } END { print "" }' \
        "services/redis/$instance.acl.template" |
        sed -e "s/SHA256_OF_redis_celery_password/$(hash_of redis_celery_password)/" \
        -e "s/SHA256_OF_redis_exporter_password/$(hash_of redis_exporter_password)/" |
        write "redis_$instance.acl"
done

# redis-exporter looks up passwords by the address that it scrapes.
printf '{"redis://exporter@redis:6379": "%s", "redis://exporter@redis-results:6379": "%s"}\n' \
    "$(cat secrets/redis_exporter_password)" "$(cat secrets/redis_exporter_password)" | write redis_exporter.json
