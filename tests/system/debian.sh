# Sourced by the install_*.sh: Debian packages into a folder of their own, from the mirror and release of the machine's
# own apt configuration, with lists of our own; nothing else on the machine changes. Needs no root.
#   own_apt COMPONENT...        prepares; then
#   fetch FOLDER PACKAGE...     downloads and unpacks

fail() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; exit 1; }

own_apt() {
    local target mirror release key
    [ "$(dpkg --print-architecture)" = amd64 ] || fail "only for amd64"
    target='$(IDENTIFIER)|$(COMPONENT)|$(SITE)|$(CODENAME)|$(SIGNED_BY)'
    read -r mirror release key < <(
        apt-get indextargets --format "$target" |
            awk -F'|' '$1 == "Packages" && $2 == "main" && $4 !~ /-(updates|backports|security)/ { print $3, $4, $5; exit }'
    ) || fail "apt has no source with the component main"
    [ -n "${key:-}" ] && [ "$key" != '$(SIGNED_BY)' ] || key=/usr/share/keyrings/debian-archive-keyring.gpg
    apt_folder="$(mktemp -d)"
    trap 'rm -rf "$apt_folder"' EXIT
    mkdir -p "$apt_folder/lists/partial" "$apt_folder/archives/partial" "$apt_folder/debs"
    chmod 755 "$apt_folder"
    printf 'deb [signed-by=%s arch=amd64] %s %s %s\n' "$key" "$mirror" "$release" "$*" >"$apt_folder/sources.list"
    apt_options=(-o "Dir::Etc::SourceList=$apt_folder/sources.list" -o Dir::Etc::SourceParts=/dev/null
        -o "Dir::State::Lists=$apt_folder/lists" -o "Dir::Cache=$apt_folder" -o APT::Sandbox::User="$(id -un)")
    apt-get "${apt_options[@]}" -qq update >&2 || fail "apt-get update failed for $release $*"
}

fetch() {
    local folder="$1" package
    shift
    (cd "$apt_folder/debs" && apt-get "${apt_options[@]}" -qq download "$@" >&2) || fail "cannot download $*"
    for package in "$apt_folder"/debs/*.deb; do dpkg -x "$package" "$folder" && rm "$package"; done
}
