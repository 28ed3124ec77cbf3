#!/usr/bin/env bash
# Last step of `make up`: starts the stack, waits until every service is healthy, prints addresses.
# On failure prints the service, its state and its last log lines; exits with 1.
set -uo pipefail

log=$(mktemp)
trap 'rm -f "$log"' EXIT
started=$SECONDS

# Prints "service file" for each mounted file that has changed since the container started, which still uses the old
# one: secrets, Redis' access lists and configuration, files of Prometheus and Alertmanager.
changed() {
    local service since source running
    running=$(docker compose ps --quiet 2>/dev/null)
    [ -n "$running" ] || return 0
    # shellcheck disable=SC2086 # words
    docker inspect $running --format '{{$service := index .Config.Labels "com.docker.compose.service"}}{{$since := .State.StartedAt}}{{range .Mounts}}{{$service}} {{$since}} {{.Source}}{{"\n"}}{{end}}' |
        while read -r service since source; do
            case $source in
                "$PWD"/secrets/* | "$PWD"/services/* | "$PWD"/prometheus*)
                    touch -d "${since%.*}Z" "$log"
                    find "$source" -type f -newer "$log" -exec echo "$service" {} \;
                    ;;
            esac
        done
}

new=$(changed)
if [ -n "$new" ]; then
    services=$(cut -d ' ' -f 1 <<<"$new" | sort -u)
    files=$(cut -d ' ' -f 2- <<<"${new//"$PWD/"/}" | sort -u)
    echo "up: changed: $(xargs <<<"$files"); restarting $(xargs <<<"$services")"
    # Redis first: the others log in with its access list.
    for group in "$(grep '^redis' <<<"$services")" "$(grep -v '^redis' <<<"$services")"; do
        # shellcheck disable=SC2086 # words
        [ -z "$group" ] || docker compose restart $group
    done
fi

docker compose up --detach --wait --wait-timeout 120 2> >(tee "$log" >&2)
failed=$?

bad=$(docker compose ps --all --format '{{.Service}} {{.State}} {{.Health}} {{.ExitCode}}' |
    awk '!($2 == "running" && ($3 == "healthy" || $3 == "" || $3 == "0"))')
if [ -n "$bad" ]; then
    while read -r service state rest; do
        printf '\n%s is %s (%s); its last lines:\n' "$service" "$state" "$rest"
        docker compose logs --no-log-prefix --tail=15 "$service" 2>&1 | sed $'s/\x1b\\[[0-9;]*[A-Za-z]//g; s/^/    /'
    done <<<"$bad"
fi
if grep -qE 'port is already allocated|address already in use' "$log"; then
    port=$(grep -oE '127\.0\.0\.1:[0-9]+' "$log" | head -n 1)
    line=$(grep -E "_PORT=${port##*:}\$" .env | tail -n 1)
    printf '\n%s is taken by another program: change %s in .env (0 takes a free port), then make up.\n' "$port" "${line:-the port}"
fi
[ "$failed" = 0 ] && [ -z "$bad" ] || { printf '\nThe stack is not up. README.md, "When something is wrong", says what to do.\n'; exit 1; }

printf '\nUp and healthy after %s s.\n\n' "$((SECONDS - started))"
scripts/urls.sh
cat <<'TEXT'

Try next:
  make inspect                       what each worker is running
  make scale LOW=4                   four containers for the queue `low`
  make down                          stop; data stays
TEXT
# >>> demo
cat <<'TEXT'
  make tour                          every concept of Celery as a live lesson
  make client                        how tasks are called
  make load TRAFFIC=flood FOR=60s    thousands of low-priority tasks; queries stay fast
  make chaos FAULT=worker-kill       kill a worker under load: no task is lost
TEXT
# <<< demo
