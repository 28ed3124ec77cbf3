#!/usr/bin/env bash
# Addresses and logins of the running services. Ports are read from the engine: port 0 gets a new one at each start.
set -uo pipefail

row() { # name, service, port, [file with the password of admin]
    local address
    address=$(scripts/address.sh "$2" "$3")
    [ -n "$address" ] || return 0
    printf '  %-13s http://%s\n' "$1" "$address"
    [ -z "${4:-}" ] || printf '  %-13s admin / %s\n' "" "$(cat "$4")"
}

row Grafana grafana 3000 secrets/grafana_password
row Prometheus prometheus 9090 secrets/prometheus_password
row Alertmanager alertmanager 9093 secrets/alertmanager_password
row Flower flower 5555 secrets/flower_password
# The user's setting; images.sh writes its own below it if it has no image of Grafana.
wanted=${COMPOSE_PROFILES-$(sed '/^# >>> stand-ins/,/^# <<< stand-ins/d' .env | sed -n 's/^COMPOSE_PROFILES=//p' | tail -n 1)}
if [[ ,$wanted, != *,grafana,* ]]; then
    echo "  Grafana is left out: grafana is not in COMPOSE_PROFILES (.env)."
elif grep -q 'so its profile is left out$' .env; then
    echo '  Grafana is left out: no registry answers, and there is no package of it.'
fi
