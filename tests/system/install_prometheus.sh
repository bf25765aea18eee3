#!/usr/bin/env bash
# Unpacks Prometheus and promtool from Debian's packages into a folder of its own; nothing else on the machine changes.
#   tests/system/install_prometheus.sh [FOLDER]   prints the folder to put on PATH (default: .prometheus in the checkout)
set -euo pipefail
. "$(dirname "$0")/debian.sh"

folder="$(realpath -m "${1:-$(dirname "$0")/../../.prometheus}")"
bin="$folder/usr/bin"
if [ ! -x "$bin/prometheus" ] || ! "$bin/prometheus" --version >/dev/null 2>&1; then
    own_apt main
    fetch "$folder" prometheus
fi
"$bin/prometheus" --version 2>&1 | head -1 >&2
"$bin/promtool" --version >/dev/null 2>&1 || fail "promtool does not run"
printf '%s\n' "$bin"
