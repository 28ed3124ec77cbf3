#!/usr/bin/env bash
# Last step of `make up`: starts the stack, waits until every service is healthy, tries what a user will use, prints
# addresses. On failure prints the service, its state and its last log lines; exits with 1. V=1 prints compose's output.
set -uo pipefail

log=$(mktemp)
trap 'rm -f "$log"' EXIT
trap 'printf "\nup: interrupted; make up continues\n" >&2; exit 130' INT TERM
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
    echo "up: changed: $(xargs <<<"$files"); restarting $(xargs <<<"$services")" | fold -s -w 80
    # Not `restart`: this stops Redis last, so that workers can return their messages while their password is accepted.
    for step in stop start; do
        # shellcheck disable=SC2086 # words
        docker compose "$step" $services 2> >(grep -v '^ Container ' >&2)
    done
fi

# Reads compose's progress; prints a line for each container that has become healthy.
healthy() {
    local project name seen=' '
    project=$(docker compose config --format json | sed -n 's/^  "name": "\(.*\)",*$/\1/p')
    while read -r line; do
        [ -z "${V:-}" ] || echo "$line"
        [[ $line =~ ^Container\ ([^ ]+)\ +Healthy$ ]] || continue
        name=${BASH_REMATCH[1]#"$project-"}
        [[ $seen != *" $name "* ]] || continue # once more for each service that depends on it
        seen+="$name "
        printf '  %-22s healthy after %3s s\n' "${name%-1}" "$((SECONDS - started))"
    done
}

echo "up: starting the services"
docker compose up --detach --wait --wait-timeout 120 2>&1 | tee "$log" | healthy
failed=${PIPESTATUS[0]}

bad=$(docker compose ps --all --format '{{.Service}} {{.State}} {{.Health}} {{.ExitCode}}' |
    awk '!($2 == "running" && ($3 == "healthy" || $3 == "" || $3 == "0"))')
if [ -n "$bad" ]; then
    while read -r service state rest; do
        printf '\n%s is %s (%s); its last lines:\n' "$service" "$state" "$rest"
        docker compose logs --no-log-prefix --tail=15 "$service" 2>&1 | sed $'s/\x1b\\[[0-9;]*[A-Za-z]//g; s/^/    /'
    done <<<"$bad"
fi
if grep -qE 'port is already allocated|address already in use' "$log"; then
    port=$(grep -oE '127\.0\.0\.1:[0-9]+' "$log" | sed -n 1p)
    line=$(grep -E "_PORT=${port##*:}\$" .env | tail -n 1)
    printf '\n%s is taken by another program: change %s in .env (0 takes a free port), then make up.\n' "$port" "${line:-the port}"
fi
not_up() { printf '\nThe stack is not up. README.md, "When something is wrong", says what to do.\n'; exit 1; }
if [ "$failed" != 0 ] || [ -n "$bad" ]; then
    grep -vE '^ *(Container|Network|Volume) |^ *$' "$log" # compose's reason
    not_up
fi

# A health check shows that a program runs. This shows that they work together.
echo "up: trying the queues, beat, and the logins"
queues=$(docker compose ps --services --status running | sed -n 's/^worker-//p')
# shellcheck disable=SC2086 # words
scripts/run.sh --no-TTY client python ready.py $queues 2> >(grep -v '^ Container ' >&2) || not_up

# $1: name, $2: service, $3: its port, $4: a path that needs the login, $5: its password
login() {
    local address
    address=$(scripts/address.sh "$2" "$3")
    [ -n "$address" ] || return 0
    if LOGIN="admin:$(cat "$5")" services/celery/http-ok "${address##*:}" "$4"; then
        printf '  %-22s accepts the login\n' "$1"
    else
        printf '  %-22s does not accept the login admin with the password in %s\n' "$1" "$5"
        return 1
    fi
}
login Prometheus prometheus 9090 /api/v1/status/config secrets/prometheus_password || not_up
login Alertmanager alertmanager 9093 /api/v2/status secrets/alertmanager_password || not_up
login Flower flower 5555 /api/workers secrets/flower_password || not_up
grafana=(Grafana grafana 3000 /api/user secrets/grafana_password)
# Grafana keeps the password of its first start in its data: a later one is set there.
login "${grafana[@]}" >/dev/null ||
    docker compose exec -T grafana grafana cli admin reset-admin-password --password-from-stdin \
        <secrets/grafana_password >"$log" 2>&1 || cat "$log"
login "${grafana[@]}" || not_up

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
  make ask WORD=import               one task, and its way through the stack
  make client                        how tasks are called
  make load TRAFFIC=flood FOR=60s    thousands of tasks; queries stay fast
  make chaos FAULT=worker-kill       kill a worker under load: no task is lost
TEXT
# <<< demo
