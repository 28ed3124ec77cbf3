#!/usr/bin/env bash
# Prints Grafana's published address, host:port; nothing if it is not running.
address=$(docker compose port grafana 3000 2>/dev/null)
[ "${address##*:}" = 0 ] || echo "$address"
