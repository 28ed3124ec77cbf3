#!/usr/bin/env bash
# Addresses and logins of the running services. Ports are read from the engine: port 0 gets a new one at each start.
set -uo pipefail

row() { # name, service, port, login
    local address
    address=$(docker compose port "$2" "$3" 2>/dev/null) || return 0
    [ "${address##*:}" = 0 ] || printf '  %-13s http://%-20s %s\n' "$1" "$address" "$4"
}

row Grafana grafana 3000 "admin / $(cat secrets/grafana_password)"
row Prometheus prometheus 9090 ""
row Alertmanager alertmanager 9093 ""
row Flower flower 5555 "admin / $(cat secrets/flower_password)"
grep -q '^COMPOSE_PROFILES=.*grafana' <(grep '^COMPOSE_PROFILES=' .env | tail -n 1) ||
    echo "  Grafana is left out: \`grafana\` is not in COMPOSE_PROFILES (.env), or its image is not available."
