#!/usr/bin/env bash
# Unpacks Nsight Systems from Debian's non-free component into a folder of its own; nothing else on the machine changes.
#   tests/system/install_nsys.sh [FOLDER]     prints the folder to put on PATH (default: .nsys in the checkout)
# The mirror and the release are those of the machine's own apt configuration. Needs no root.
set -euo pipefail

folder="$(realpath -m "${1:-$(dirname "$0")/../../.nsys}")"
libraries="$folder/usr/lib/x86_64-linux-gnu"
host="$libraries/nsight-systems/host-linux-x64"
if [ -x "$folder/bin/nsys" ] && "$folder/bin/nsys" --version >/dev/null 2>&1; then
    printf '%s\n' "$folder/bin"
    exit 0
fi

fail() { printf 'install_nsys.sh: %s\n' "$*" >&2; exit 1; }

[ "$(dpkg --print-architecture)" = amd64 ] || fail "only for amd64"
target='$(IDENTIFIER)|$(COMPONENT)|$(SITE)|$(CODENAME)|$(SIGNED_BY)'
read -r mirror release key < <(
    apt-get indextargets --format "$target" |
        awk -F'|' '$1 == "Packages" && $2 == "main" && $4 !~ /-(updates|backports|security)/ { print $3, $4, $5; exit }'
) || fail "apt has no source with the component main"
[ -n "${key:-}" ] && [ "$key" != '$(SIGNED_BY)' ] || key=/usr/share/keyrings/debian-archive-keyring.gpg

# An apt of its own: the same mirror, release and key, with non-free added, and lists in a folder of ours.
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/lists/partial" "$work/archives/partial" "$work/debs"
chmod 755 "$work"
printf 'deb [signed-by=%s arch=amd64] %s %s main non-free\n' "$key" "$mirror" "$release" >"$work/sources.list"
own_apt=(-o "Dir::Etc::SourceList=$work/sources.list" -o Dir::Etc::SourceParts=/dev/null
    -o "Dir::State::Lists=$work/lists" -o "Dir::Cache=$work" -o APT::Sandbox::User="$(id -un)")
apt-get "${own_apt[@]}" -qq update >&2 || fail "apt-get update failed for $release non-free"
fetch() { (cd "$work/debs" && apt-get "${own_apt[@]}" -qq download "$@" >&2) || fail "cannot download $*"; }
unpack() { for package in "$work"/debs/*.deb; do dpkg -x "$package" "$folder" && rm "$package"; done; }

fetch nsight-systems nsight-systems-target
unpack
# Debian keeps the two halves apart; nsys looks for its importer beside itself.
[ -e "$host" ] || ln -s "$folder/usr/lib/nsight-systems/host-linux-x64" "$host"

missing() { LD_LIBRARY_PATH="$libraries:$libraries/nsight-systems/host-linux-x64" ldd "$host/QdstrmImporter" | awk '/not found/ { print $1 }'; }
if missing | grep -q libssh; then
    fetch libssh-4
    unpack
    ln -sf "$libraries"/libssh.so.4* "$folder/usr/lib/nsight-systems/host-linux-x64/"
fi
[ -z "$(missing)" ] || fail "the importer lacks $(missing | tr '\n' ' ')"

mkdir -p "$folder/bin"
ln -sf "$libraries/nsight-systems/target-linux-x64/nsys" "$folder/bin/nsys"
"$folder/bin/nsys" --version >&2
printf '%s\n' "$folder/bin"
