#!/usr/bin/env bash
# Writes the stand-ins' base, a small Debian 13, as a tar to stdout: `offline/base.sh | docker import - NAME`.
# Needs root and mmdebstrap. Debian's address is the one that this host's apt uses.
set -euo pipefail

# shellcheck source=/dev/null
codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
# shellcheck disable=SC2016 # apt fills it in
MIRROR=$(apt-get indextargets --format '$(REPO_URI)' "Codename: $codename" 'Created-By: Packages' | head -n 1)
[ -n "$MIRROR" ] || { echo "apt knows no Debian mirror: run apt-get update" >&2; exit 1; }
# What the host's apt was told of the way to its mirror: a proxy, a mirror that lags behind.
SETTINGS=$(apt-config dump | grep -E '^Acquire::(https?::|Retries|Check-Valid-Until)' || true)
export MIRROR SETTINGS

# sid has the newer monitoring programs; its pin keeps out of it what is not asked for by name/sid.
# The host's certificates: pip reaches its index inside `docker build` as it does on the host, behind a proxy too.
# shellcheck disable=SC2016 # the hooks' own shell fills them in
exec mmdebstrap --variant=apt --include=ca-certificates,passwd,busybox --components=main --dpkgopt=force-unsafe-io \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    --keyring=/usr/share/keyrings/debian-archive-keyring.gpg \
    --customize-hook='upload /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt' \
    --customize-hook='echo "deb $MIRROR sid main" >"$1/etc/apt/sources.list.d/sid.list"' \
    --customize-hook='printf "Package: *\nPin: release n=sid\nPin-Priority: -1\n" >"$1/etc/apt/preferences.d/sid"' \
    --customize-hook='echo "$SETTINGS" >"$1/etc/apt/apt.conf.d/99host"' \
    trixie - "$MIRROR"
