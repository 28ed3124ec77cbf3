#!/usr/bin/env bash
# `address.sh grafana 3000`: the published address of a service, host:port; nothing if it is not running.
address=$(docker compose port "$1" "$2" 2>/dev/null)
[ "${address##*:}" = 0 ] || echo "$address"
