#!/usr/bin/env bash
# Unpacks Nsight Systems from Debian's non-free component into a folder of its own; nothing else on the machine changes.
#   tests/system/install_nsys.sh [FOLDER]     prints the folder to put on PATH (default: .nsys in the checkout)
set -euo pipefail
. "$(dirname "$0")/debian.sh"

folder="$(realpath -m "${1:-$(dirname "$0")/../../.nsys}")"
libraries="$folder/usr/lib/x86_64-linux-gnu"
host="$libraries/nsight-systems/host-linux-x64"
if [ -x "$folder/bin/nsys" ] && "$folder/bin/nsys" --version >/dev/null 2>&1; then
    printf '%s\n' "$folder/bin"
    exit 0
fi

own_apt main non-free
fetch "$folder" nsight-systems nsight-systems-target
# Debian keeps the two halves apart; nsys looks for its importer beside itself.
[ -e "$host" ] || ln -s "$folder/usr/lib/nsight-systems/host-linux-x64" "$host"

missing() { LD_LIBRARY_PATH="$libraries:$libraries/nsight-systems/host-linux-x64" ldd "$host/QdstrmImporter" | awk '/not found/ { print $1 }'; }
if missing | grep -q libssh; then
    fetch "$folder" libssh-4
    ln -sf "$libraries"/libssh.so.4* "$folder/usr/lib/nsight-systems/host-linux-x64/"
fi
[ -z "$(missing)" ] || fail "the importer lacks $(missing | tr '\n' ' ')"

mkdir -p "$folder/bin"
ln -sf "$libraries/nsight-systems/target-linux-x64/nsys" "$folder/bin/nsys"
"$folder/bin/nsys" --version >&2
printf '%s\n' "$folder/bin"
