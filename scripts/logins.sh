#!/usr/bin/env bash
# Last step of `make build`: the logins of Prometheus and Alertmanager. Their web configuration takes a password only as
# a bcrypt hash; bcrypt is in Celery's image. Written again when the password is newer.
set -euo pipefail
cd "$(dirname "$0")/.."

image=${CELERY_IMAGE:-$(sed -n 's/^CELERY_IMAGE=//p' .env | tail -n 1)}
for name in prometheus alertmanager; do
    password=secrets/${name}_password file=secrets/${name}_web.yml
    [ "$password" -nt "$file" ] || continue
    hash=$(docker run --rm --interactive --network none "$image" \
        python -c 'import bcrypt, sys; print(bcrypt.hashpw(sys.stdin.buffer.read().strip(), bcrypt.gensalt(10)).decode())' \
        <"$password")
    printf 'basic_auth_users: { admin: "%s" }\n' "$hash" >"$file.new"
    chmod 444 "$file.new"
    mv -f "$file.new" "$file"
    echo "build: created $file"
done
