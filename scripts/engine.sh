#!/usr/bin/env bash
# `make engine`: finds a container engine with Compose v2 and buildx. Where one is missing and we are root on Debian or
# Ubuntu, installs it from the distribution's packages and starts the daemon; says so first. SETUP=0 forbids it.
set -euo pipefail

SETUP=${SETUP:-1}
LOG=$(mktemp -t engine-setup.XXXXXX.log)
trap 'rm -f "$LOG"' EXIT

say() { echo "engine: $*"; }
fail() { printf 'engine: %s\n' "$@" >&2; exit 1; }
have() { command -v "$1" >/dev/null; }

# Runs a step quietly; shows its last lines when it fails.
step() {
    "$@" >"$LOG" 2>&1 || { tail -n 15 "$LOG" >&2; fail "this failed: $*"; }
}

# $1: what is missing, $2: how to get it by hand. Returns only where we may change the machine.
allowed_or_fail() {
    [ "$SETUP" != 0 ] || fail "$1, and SETUP=0 forbids setting it up." "$2"
    [ "$(id -u)" = 0 ] || fail "$1." "$2"
}

daemon_answers() { docker info >"$LOG" 2>&1; }
compose_is_v2() { docker compose version --short 2>/dev/null | grep -qE '^v?([2-9]|[1-9][0-9])\.'; }
has_buildx() { docker buildx version >/dev/null 2>&1; }

apt() { step env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120 -qq "$@"; }

# $1: package, $2: a regular expression that the version on offer must match.
on_offer() { apt-cache policy "$1" | sed -n 's/^ *Candidate: //p' | grep -qE "$2"; }

# The first package on offer that is the wanted plugin: Docker's own name, Ubuntu's, Debian 13's.
compose_package() {
    if on_offer docker-compose-plugin '^[0-9]'; then echo docker-compose-plugin
    elif on_offer docker-compose-v2 '^[0-9]'; then echo docker-compose-v2
    elif on_offer docker-compose '^[2-9]'; then echo docker-compose # Debian 12's is 1.29
    fi
}
buildx_package() {
    if on_offer docker-buildx-plugin '^[0-9]'; then echo docker-buildx-plugin
    elif on_offer docker-buildx '^[0-9]'; then echo docker-buildx
    fi
}

# Debian 12 has neither plugin; Debian 13's run on it (static but for libc >= 2.34). apt reads them through a sources
# list and a lists folder of its own, so the machine's own sources stay as they are.
install_from_debian_13() {
    local dir mirror
    # shellcheck disable=SC2016 # apt fills it in
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Codename: bookworm' 'Created-By: Packages' | head -n 1)
    [ -n "$mirror" ] || fail "apt knows no Debian mirror: put one in /etc/apt/sources.list."
    dir=$(mktemp -d)
    mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror trixie main" >"$dir/sources.list"
    local throw_away=(-o "Dir::Etc::sourcelist=$dir/sources.list" -o "Dir::Etc::sourceparts=-"
        -o "Dir::State::lists=$dir/lists" -o "Dir::Cache=$dir/cache" -o APT::Sandbox::User=root)
    apt "${throw_away[@]}" update
    (cd "$dir" && apt "${throw_away[@]}" download "$@")
    apt install --no-install-recommends -y "$dir"/*.deb
    rm -rf "$dir"
}

# Installs what is missing of: engine, Compose, buildx.
install_missing() {
    local manual='Install Docker Engine 20.10 or newer with its compose and buildx plugins: docs.docker.com/engine/install'
    local missing=() packages=() from_13=() id='' version=''
    have docker && have dockerd || have_remote_daemon || missing+=("a container engine (docker)")
    compose_is_v2 || missing+=("Compose v2 (docker compose)")
    has_buildx || missing+=("buildx (docker buildx)")
    [ "${#missing[@]}" -gt 0 ] || return 0
    local what
    printf -v what '%s, ' "${missing[@]}"
    what="missing: ${what%, }"
    ! have docker-compose || compose_is_v2 || what+="; the docker-compose that is here is v1, which is too old"
    allowed_or_fail "$what" "$manual; or run this as root on Debian or Ubuntu."
    # shellcheck source=/dev/null
    [ ! -r /etc/os-release ] || { id=$(. /etc/os-release && echo "$ID"); version=$(. /etc/os-release && echo "${VERSION_ID:-}"); }
    case $id in debian | ubuntu) ;; *) fail "$what." "$manual" ;; esac

    say "$what; reading the package lists of $id $version"
    apt update
    have dockerd || have_remote_daemon || packages+=(docker.io iptables)
    # Debian 13 split the client from docker.io; Ubuntu and Debian 12 have it inside
    have docker || ! on_offer docker-cli '^[0-9]' || packages+=(docker-cli)
    local compose='' buildx=''
    compose_is_v2 || { compose=$(compose_package); packages+=(${compose:+"$compose"}); }
    has_buildx || { buildx=$(buildx_package); packages+=(${buildx:+"$buildx"}); }
    compose_is_v2 || [ -n "$compose" ] || from_13+=(docker-compose)
    has_buildx || [ -n "$buildx" ] || from_13+=(docker-buildx)
    [ "${#from_13[@]}" -eq 0 ] || [ "$id $version" = "debian 12" ] || fail "$id $version has no package for: ${from_13[*]}." "$manual"

    if [ "${#packages[@]}" -gt 0 ]; then
        say "installing the packages ${packages[*]} of $id $version"
        apt install --no-install-recommends -y "${packages[@]}"
    fi
    if [ "${#from_13[@]}" -gt 0 ]; then
        say "installing the packages ${from_13[*]} of Debian 13 (Debian 12 has none)"
        install_from_debian_13 "${from_13[@]}"
    fi
}

# An engine elsewhere (DOCKER_HOST, or a context) is the user's to start.
have_remote_daemon() {
    have docker || return 1
    case $(docker context inspect --format '{{.Endpoints.docker.Host}}' 2>/dev/null) in
        '' | unix:///var/run/docker.sock | unix:///run/docker.sock) return 1 ;;
    esac
}

start_daemon() {
    if have_remote_daemon; then
        fail "the engine at $(docker context inspect --format '{{.Endpoints.docker.Host}}') does not answer: start it, or unset DOCKER_HOST / run 'docker context use default'."
    fi
    allowed_or_fail "the docker daemon does not run" "Start it: sudo systemctl start docker (or sudo service docker start)."
    say "starting the docker daemon"
    if [ -d /run/systemd/system ]; then
        step systemctl enable --now docker
    elif ! service docker start >"$LOG" 2>&1; then # no init script, or one that may not raise its limits (in a container)
        setsid dockerd >/var/log/docker.log 2>&1 </dev/null &
    fi
    local deadline=$((SECONDS + 60))
    until daemon_answers; do
        [ "$SECONDS" -lt "$deadline" ] || {
            tail -n 15 /var/log/docker.log >&2 2>/dev/null || true
            fail "the docker daemon did not answer within 60 s; its log: /var/log/docker.log or 'journalctl -u docker'."
        }
        sleep 0.5
    done
}

install_missing
if ! daemon_answers; then
    if grep -q 'permission denied' "$LOG"; then
        fail "user $(id -un) may not use the docker socket." \
            "Allow it: sudo usermod -aG docker $(id -un), then log in again (members of that group have root's rights)."
    fi
    start_daemon
fi
compose_is_v2 || fail "'docker compose version' is not 2 or newer after the installation: is another docker first in PATH ($(command -v docker))?"
say "docker $(docker version --format '{{.Server.Version}}'), compose $(docker compose version --short), buildx $(docker buildx version | awk '{print $2}')"
