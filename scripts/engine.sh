#!/usr/bin/env bash
# `make engine`: finds a container engine with Compose v2 and buildx, and Python. If one is missing, and the user is root
# on Debian or Ubuntu, it prints what it does, installs the distribution's packages and starts the daemon. SETUP=0 forbids
# it.
set -euo pipefail
trap 'exit 130' INT

SETUP=${SETUP:-1}
HOW='Install Python 3.9 or newer, and Docker Engine 20.10 or newer with its compose and buildx plugins: docs.docker.com/engine/install'
LOG=$(mktemp -t engine.XXXXXX)
trap 'rm -f "$LOG"' EXIT

say() { echo "engine: $*"; }
fail() { printf 'engine: %s\n' "$@" >&2; exit 1; }
have() { command -v "$1" >/dev/null; }

# Runs a step quietly; shows its last lines when it fails.
step() { "$@" >"$LOG" 2>&1 || { tail -n 15 "$LOG" >&2; fail "this failed: $*"; }; }
apt() { step env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120 -qq "$@"; }

# $1: what is wrong, $2: the manual solution. Returns only if the script may change the machine.
may_change_or_fail() {
    [ "$SETUP" != 0 ] || fail "$1, and SETUP=0 forbids changing that." "$2"
    [ "$(id -u)" = 0 ] || fail "$1." "$2"
}

# Each stores its result for the last line: a call takes 0.1 s.
daemon_answers() { server=$(docker version --format '{{.Server.Version}}' 2>"$LOG"); }
compose_is_v2() { compose=$(docker compose version --short 2>/dev/null) && [[ $compose =~ ^v?([2-9]|[1-9][0-9])\. ]]; }
has_python() { python3 -c 'import sys; sys.exit(sys.version_info < (3, 9))' 2>/dev/null; } # for scripts/check.py
has_buildx() { buildx=$(docker buildx version 2>/dev/null | awk '{ print $2 }') && [ -n "$buildx" ]; }

# The engine's address if it is not this machine's own: DOCKER_HOST, a context, Docker Desktop. The user must start it.
address_elsewhere() {
    local address
    address=$(docker context inspect --format '{{.Endpoints.docker.Host}}' 2>/dev/null) || return 1
    case $address in unix:///var/run/docker.sock | unix:///run/docker.sock) return 1 ;; esac
    echo "$address"
}

# $1: package, $2: a regular expression that the available version must match
on_offer() { apt-cache policy "$1" | sed -n 's/^ *Candidate: //p' | grep -qE "$2"; }
# The package of a plugin: Docker's own (if its repository is enabled), Ubuntu's, Debian 13's. Debian 12 has compose
# 1.29 and no buildx.
compose_package() {
    if on_offer docker-compose-plugin '^[0-9]'; then echo docker-compose-plugin
    elif on_offer docker-compose-v2 '^[0-9]'; then echo docker-compose-v2
    elif on_offer docker-compose '^[2-9]'; then echo docker-compose; fi
}
buildx_package() {
    if on_offer docker-buildx-plugin '^[0-9]'; then echo docker-buildx-plugin
    elif on_offer docker-buildx '^[0-9]'; then echo docker-buildx; fi
}

# Debian 13's plugins run on Debian 12: they only need a libc >= 2.34. apt uses a separate sources list and lists
# folder, so that the machine's sources do not change.
install_from_debian_13() {
    local dir mirror
    # shellcheck disable=SC2016 # apt fills it in
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Codename: bookworm' 'Created-By: Packages' | sed -n 1p)
    [ -n "$mirror" ] || fail "apt has no Debian mirror: add one to /etc/apt/sources.list."
    dir=$(mktemp -d)
    mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror trixie main" >"$dir/sources.list"
    local throw_away=(-o "Dir::Etc::sourcelist=$dir/sources.list" -o Dir::Etc::sourceparts=-
        -o "Dir::State::lists=$dir/lists" -o "Dir::Cache=$dir/cache" -o APT::Sandbox::User=root)
    apt "${throw_away[@]}" update
    (cd "$dir" && apt "${throw_away[@]}" download "$@")
    apt install --no-install-recommends -y "$dir"/*.deb
    rm -rf "$dir"
}

# $@: what is missing, of: engine compose buildx python
install() {
    local missing=" $* " what='' id='' version='' package packages=() from_13=()
    [[ $missing != *' engine '* ]] || what+=', a container engine (docker)'
    [[ $missing != *' compose '* ]] || what+=', Compose v2 (docker compose)'
    [[ $missing != *' buildx '* ]] || what+=', buildx (docker buildx)'
    [[ $missing != *' python '* ]] || what+=', Python 3.9 or newer (python3)'
    what="missing: ${what#, }"
    if [[ $missing == *' compose '* ]] && have docker-compose; then what+=' (the installed docker-compose is v1, too old)'; fi
    may_change_or_fail "$what" "$HOW; or run this as root on Debian or Ubuntu."
    if [ -r /etc/os-release ]; then
        # shellcheck source=/dev/null
        id=$(. /etc/os-release && echo "$ID") version=$(. /etc/os-release && echo "${VERSION_ID:-}")
    fi
    case $id in debian | ubuntu) ;; *) fail "$what, and this script cannot install it on ${id:-this system}." "$HOW" ;; esac

    say "$what"
    say "reading the package lists of $id $version"
    apt update
    if [[ $missing == *' engine '* ]]; then
        packages+=(docker.io iptables)
        # in Debian 13 the client is a separate package; elsewhere it is in docker.io
        if ! have docker && on_offer docker-cli '^[0-9]'; then packages+=(docker-cli); fi
    fi
    if [[ $missing == *' python '* ]]; then packages+=(python3); fi
    for plugin in compose buildx; do
        if [[ $missing != *" $plugin "* ]]; then continue; fi
        package=$("${plugin}_package")
        if [ -n "$package" ]; then packages+=("$package")
        elif [ "$id $version" = 'debian 12' ]; then from_13+=("docker-$plugin")
        else fail "$id $version has no package of docker $plugin." "$HOW"; fi
    done
    if [ "${#packages[@]}" -gt 0 ]; then
        say "installing packages of $id $version: ${packages[*]}"
        apt install --no-install-recommends -y "${packages[@]}"
    fi
    if [ "${#from_13[@]}" -gt 0 ]; then
        say "installing packages of Debian 13, because Debian 12 has none: ${from_13[*]}"
        install_from_debian_13 "${from_13[@]}"
    fi
}

start_daemon() {
    may_change_or_fail "the docker daemon does not run" "Start it: sudo systemctl start docker (or: sudo service docker start)."
    say "starting the docker daemon"
    # Remove PID files of a killed daemon: it refuses to start while such a PID exists, even if it is another program's
    # or a zombie.
    local file
    for file in /var/run/docker.pid /var/run/docker/containerd/containerd.pid; do
        if [ -f "$file" ] && ! grep -qaE 'dockerd|containerd' "/proc/$(cat "$file")/cmdline" 2>/dev/null; then rm -f "$file"; fi
    done
    if [ -d /run/systemd/system ]; then
        step systemctl enable --now docker
    elif ! service docker start >"$LOG" 2>&1; then # no init script, or one that may not raise its limits (in a container)
        setsid dockerd >/var/log/docker.log 2>&1 </dev/null &
    fi
    local deadline=$((SECONDS + 60))
    until daemon_answers; do
        if [ "$SECONDS" -ge "$deadline" ]; then
            tail -n 15 /var/log/docker.log >&2 || true
            fail "the docker daemon did not answer within 60 s; its log: /var/log/docker.log or journalctl -u docker."
        fi
        sleep 0.5
    done
}

# State of the engine: it `answers`, `refuses` access, is `elsewhere` and does not answer, is `stopped`, or `missing`.
engine=missing
if have docker; then
    if daemon_answers; then engine=answers
    elif grep -q 'permission denied' "$LOG"; then engine=refuses
    elif address_elsewhere >/dev/null; then engine=elsewhere; fi
fi
if [ "$engine" = missing ] && { have dockerd || [ -x /usr/sbin/dockerd ] || [ -x /usr/bin/dockerd ]; } && have docker; then engine=stopped; fi

case $engine in
    refuses) fail "user $(id -un) may not use the docker socket." \
        "Allow it: sudo usermod -aG docker $(id -un), then log in again (members of that group have root's rights)." ;;
    elsewhere) fail "the engine at $(address_elsewhere) does not answer." \
        "Start it, or use this machine's own: unset DOCKER_HOST; docker context use default." ;;
esac

missing=''
[ "$engine" != missing ] || missing+=' engine'
compose_is_v2 || missing+=' compose'
has_buildx || missing+=' buildx'
has_python || missing+=' python'
# shellcheck disable=SC2086 # words
[ -z "$missing" ] || install $missing

[ "$engine" = answers ] || daemon_answers || start_daemon
[ -z "$missing" ] || { compose_is_v2 && has_buildx; } || fail "$(command -v docker) still finds no Compose v2 or no buildx: is another docker first in PATH?"
has_python || fail "$(command -v python3) is still older than 3.9: is another python3 first in PATH?"
say "docker $server, compose $compose, buildx $buildx"
