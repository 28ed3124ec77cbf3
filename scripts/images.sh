#!/usr/bin/env bash
# `make images`: gets each third-party image named in .env: present, else pulled, else (if no registry answers) a
# stand-in built from offline/ and written to a marked block at the end of .env. Decided at each run.
set -euo pipefail
trap 'exit 130' INT
cd "$(dirname "$0")/.."

SETUP=${SETUP:-1}
FIRST_ANSWER=30 # seconds for a registry's first answer; the pull itself has no limit
BEGIN='# >>> stand-ins, written by scripts/images.sh at each run: no registry answered. Edit the lines above instead'
END='# <<< stand-ins'

say() { printf 'images: %-36s %s\n' "$1" "$2"; }
fail() { printf 'images: %s\n' "$@" >&2; exit 1; }

[ -f .env ] || fail "there is no .env: run make env first."
if command -v flock >/dev/null; then exec 9<"$0" && flock 9; fi # two concurrent runs would build everything twice
logs=$(mktemp -d -t stand-ins.XXXXXX)
trap '[ -n "${keep_logs:-}" ] || rm -rf "$logs"' EXIT

# The user's settings: .env without the marked block. The last line of a name is used, as in compose.
wanted=$(sed "/^# >>> stand-ins/,/^$END/d" .env)
value() { sed -n "s/^$1=//p" <<<"$wanted" | tail -n 1; }

# The line in .env of the image whose stand-in is offline/$1: redis_exporter → REDIS_EXPORTER_IMAGE
line_of() { echo "$(tr a-z- A-Z_ <<<"$1")_IMAGE"; }
image_of() { value "$(line_of "$1")"; }

# Pulls $1, named by the line $2 in .env. Returns 0 on success, 1 if no registry answers; fails with any other error.
pull() {
    local log=$logs/pull.log pid deadline=$((SECONDS + FIRST_ANSWER))
    : >"$log"
    docker pull "$1" >>"$log" 2>&1 &
    pid=$!
    while kill -0 "$pid" 2>/dev/null && ! grep -q 'Pulling from' "$log" && [ "$SECONDS" -lt "$deadline" ]; do sleep 0.1; done
    if grep -q 'Pulling from' "$log"; then echo "images: pulling $1"; else kill "$pid" 2>/dev/null || true; fi
    if wait "$pid"; then return 0; fi
    # The address in a network error may contain the words of a refusal: check for network errors first.
    if grep -qE 'Pulling from' "$log" || { ! grep -qiE 'dial tcp|no such host|timeout|request canceled|refused|reset|EOF|x509|unreachable' "$log" &&
        grep -qiE 'not found|manifest unknown|denied|unauthorized|toomanyrequests|invalid reference' "$log"; }; then
        fail "$2=$1 in .env cannot be pulled: $(tail -n 1 "$log")" "Correct that line, or fetch the image by hand: docker pull $1"
    fi
    return 1
}

# Hash of all files that a stand-in is built from. An image with this label is used again.
recipe() {
    local files=(offline/base.sh)
    case $1 in
        base) ;;
        celery-exporter) files+=(offline/python/* offline/celery-exporter/*) ;;
        *) files+=("offline/$1"/*) ;;
    esac
    cat "${files[@]}" | git hash-object --stdin
}
built() { docker image ls --filter "label=offline.recipe=$(recipe "$1")" --filter "reference=offline/$1" --format '{{.Repository}}:{{.Tag}}' | sed -n 1p; }

failed_build() {
    keep_logs=1
    tail -n 5 "$logs/$1.log" >&2
    fail "the stand-in offline/$1 could not be built; the whole log is $logs/$1.log"
}

build_base() {
    if [ -n "$(built base)" ]; then return; fi
    if [ "$(id -u)" != 0 ] || ! grep -qx 'ID=debian' /etc/os-release; then
        fail "no registry answers, and stand-ins can be built as root on Debian only." \
            "Connect to a registry, or copy the images named in .env with docker save and docker load."
    fi
    if ! command -v mmdebstrap >/dev/null; then
        [ "$SETUP" != 0 ] || fail "stand-ins need the package mmdebstrap, and SETUP=0 forbids installing it: apt-get install mmdebstrap."
        echo "images: installing the package mmdebstrap, which builds the stand-ins' base"
        { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120 -qq install -y --no-install-recommends mmdebstrap; } \
            >"$logs/base.log" 2>&1 || failed_build base
    fi
    echo "images: building the stand-ins' base from Debian packages (about a minute)"
    local start=$SECONDS
    offline/base.sh 2>"$logs/base.log" | docker import --change "LABEL offline.recipe=$(recipe base)" - offline/base:13 >/dev/null || failed_build base
    say offline/base:13 "built in $((SECONDS - start)) s"
}

# Builds the stand-in $1 unless it exists. Returns 1 if that fails; see its log.
build() {
    local image version start=$SECONDS
    if [ -n "$(built "$1")" ]; then return 0; fi
    say "offline/$1" "building, up to some minutes"
    docker build --progress=plain --iidfile "$logs/$1.iid" --label "offline.recipe=$(recipe "$1")" \
        --build-arg "BASE=$(built base)" --build-arg "PYTHON=$(built python)" "offline/$1" >"$logs/$1.log" 2>&1 || return 1
    image=$(cat "$logs/$1.iid")
    version=$(docker run --rm --network none --entrypoint cat "$image" /etc/stand-in-version 2>>"$logs/$1.log") || return 1
    docker tag "$image" "offline/$1:$version" || return 1
    say "offline/$1:$version" "built in $((SECONDS - start)) s"
}

missing='' silent=''
for name in python redis prometheus alertmanager redis_exporter celery-exporter grafana; do
    image=$(image_of "$name")
    [ -n "$image" ] || fail "$(line_of "$name") is missing in .env: take the line from .env.example."
    if [ "$name" = grafana ] && [[ ,$(value COMPOSE_PROFILES), != *,grafana,* ]]; then continue; fi
    registry=default
    if [[ ${image%%/*} == *[.:]* && $image == */* ]]; then registry=${image%%/*}; fi
    if docker image inspect "$image" >/dev/null 2>&1; then
        say "$image" present
    elif [[ " $silent " == *" $registry "* ]]; then
        missing+=" $name"
    elif pull "$image" "$(line_of "$name")"; then
        say "$image" pulled
    else
        echo "images: no registry answers ($(tail -n 1 "$logs/pull.log" | sed 's/.*: //'))"
        silent+=" $registry"
        missing+=" $name"
    fi
done

# Built in parallel, except that celery-exporter's is based on python's.
builds=''
case "$missing" in '' | ' grafana') ;; *) build_base ;; esac
for name in $missing; do
    case $name in grafana | python | celery-exporter) continue ;; esac
    build "$name" &
    builds+=" $!:$name"
done
case "$missing" in *python* | *celery-exporter*) build python || failed_build python ;; esac
case "$missing" in *celery-exporter*) build celery-exporter || failed_build celery-exporter ;; esac
for build in $builds; do wait "${build%%:*}" || failed_build "${build#*:}"; done

block=''
for name in $missing; do
    image=$(image_of "$name")
    if [ "$name" = grafana ]; then
        block+="# no $image, so its profile is left out"$'\n'
        block+="COMPOSE_PROFILES=$(sed -E 's/(^|,)grafana(,|$)/\1\2/; s/,,/,/; s/^,|,$//g' <<<"$(value COMPOSE_PROFILES)")"$'\n'
        say "$image" "left out: no registry, no stand-in"
    else
        block+="# instead of $image"$'\n'"$(line_of "$name")=$(built "$name")"$'\n'
        say "$image" "stand-in, version $(built "$name" | cut -d : -f 2)"
    fi
done

printf '%s\n' "$wanted" >.env.new
[ -z "$block" ] || printf '%s\n%s%s\n' "$BEGIN" "$block" "$END" >>.env.new
# replaced atomically, and only if something has changed
if cmp -s .env.new .env; then rm .env.new; else mv .env.new .env; fi
