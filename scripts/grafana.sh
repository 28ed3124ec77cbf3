#!/usr/bin/env bash
# Prints where Grafana is published, host:port; nothing where it does not run.
address=$(docker compose port grafana 3000 2>/dev/null)
[ "${address##*:}" = 0 ] || echo "$address"
