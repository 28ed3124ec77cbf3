#!/usr/bin/env bash
# `run.sh [option…] service [command…]`: `docker compose run` on the running stack, in a container that ends with this
# script. After Ctrl-C compose alone leaves it running if there is no terminal, or if it was just being created.
set -uo pipefail

label=one-off=$$-$RANDOM
containers() { docker ps "$@" --quiet --filter "label=$label"; }

end() { # exit code
    trap '' HUP INT TERM # another Ctrl-C must not interrupt this
    containers | xargs docker stop >/dev/null 2>&1
    wait
    containers --all | xargs docker rm --force >/dev/null 2>&1
    exit "$1"
}
trap 'end 129' HUP
trap 'end 130' INT
trap 'end 143' TERM
# --no-deps: otherwise it would recreate Redis after an edit of .env, which only `make up` may do. In the background,
# because bash runs no trap while it waits for a command in the foreground.
docker compose run --rm --no-deps --label "$label" "$@" <&0 &
wait "$!"
end "$?"
