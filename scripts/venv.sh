#!/usr/bin/env bash
# Creates .venv, the tools of `make lint`, `make test*` and `make lock`, from tests/requirements.txt: once, and again
# when that file changes. If Python's venv module is missing, and the user is root on Debian or Ubuntu, it installs it;
# SETUP=0 forbids that.
set -euo pipefail
trap 'exit 130' INT
cd "$(dirname "$0")/.."

SETUP=${SETUP:-1}
LOCK=tests/requirements.txt
VENV=.venv

say() { echo "venv: $*"; }
fail() { printf 'venv: %s\n' "$@" >&2; exit 1; }

# The first interpreter that is new enough; `python3` is tried first.
find_python() {
    local name
    for name in python3 python3.13 python3.12 python3.11 python3.14; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$name"
            return
        fi
    done
}

# Debian and Ubuntu ship Python without ensurepip, which is needed for a venv with pip.
install_ensurepip() {
    local package
    package=$("$PYTHON" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
    [ "$SETUP" != 0 ] || fail "$PYTHON lacks its venv module, and SETUP=0 forbids installing it." "Install the package $package."
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        fail "$PYTHON lacks its venv module (ensurepip)." "Install it, on Debian or Ubuntu: sudo apt-get install $package"
    fi
    say "installing the distribution's package $package: $PYTHON lacks its venv module"
    apt-get -qq -o DPkg::Lock::Timeout=120 update
    DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=120 install --no-install-recommends -y "$package" >/dev/null ||
        fail "apt-get could not install $package; its message is above."
}

[ -x "$VENV/bin/python" ] && cmp --silent "$LOCK" "$VENV/lock" && exit 0

PYTHON=$(find_python)
[ -n "$PYTHON" ] || fail "the checks need Python 3.11 or newer on PATH." "On Debian or Ubuntu: apt-get install python3 python3-venv"
"$PYTHON" -c 'import ensurepip' 2>/dev/null || install_ensurepip

say "installing the tools of the checks into $VENV ($("$PYTHON" --version))"
rm -rf "$VENV"
"$PYTHON" -m venv "$VENV"
"$VENV/bin/pip" install --quiet --disable-pip-version-check --require-hashes -r "$LOCK" ||
    fail "pip could not install $LOCK; its message is above. Behind a proxy or a mirror, configure pip (pip config)."
# Editable: changes of the library need no new installation.
"$VENV/bin/pip" install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable packages/celery-durable ||
    fail "pip could not install packages/celery-durable; its message is above."
# Ctrl-C ends each tool without a traceback, also while it imports its modules.
packages=$("$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
cp services/celery/sitecustomize.py "$packages/interrupts.py"
echo 'import interrupts' >"$packages/interrupts.pth"
cp "$LOCK" "$VENV/lock" # last: so an interrupted run is repeated
