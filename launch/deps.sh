# The Debian packages this program needs, and a function that installs the missing ones. Sourced by quickstart.sh and
# tests/run.sh; changes nothing when all are there.

deeprec_packages="gcc libc6-dev cmake ninja-build pkg-config openmpi-bin libopenmpi-dev libhdf5-dev libdnnl-dev
    libyaml-dev libjansson-dev libpcre2-dev libxxhash-dev zlib1g-dev libcmocka-dev"
# Wanted by the tests and by datasets/get.sh, but nothing is lost without them except what they do.
deeprec_optional_packages="clang-format g++ curl unzip xz-utils"

# Names of the packages of "$@" that are not installed.
deeprec_missing() {
    local name
    for name in "$@"; do
        dpkg-query -W -f='${db:Status-Abbrev}' "$name" 2>/dev/null | grep -q '^ii' || printf '%s ' "$name"
    done
}

# Installs what is missing: directly as root, else by sudo when it asks for no password. Fails with the list otherwise.
# Packages named as arguments are wanted as well, but do not fail the call.
deeprec_install() {
    local missing extra as_root=""
    if ! command -v dpkg-query >/dev/null 2>&1; then
        echo "deps: not a Debian system; needed are the counterparts of: $(echo $deeprec_packages)" >&2
        return 0 # the build itself says what it cannot find
    fi
    missing=$(deeprec_missing $deeprec_packages)
    extra=$(deeprec_missing "$@")
    [ -n "$missing$extra" ] || return 0
    [ "$(id -u)" = 0 ] || as_root="sudo -n"
    if ! command -v apt-get >/dev/null 2>&1 || { [ -n "$as_root" ] && ! sudo -n true 2>/dev/null; }; then
        [ -n "$missing" ] || return 0
        echo "deps: missing packages; as root: apt-get install -y --no-install-recommends $missing" >&2
        return 1
    fi
    echo "deps: installing $missing$extra"
    $as_root apt-get update -q >/dev/null 2>&1 || echo "deps: apt-get update failed, going on with the known lists" >&2
    if [ -n "$missing" ]; then
        $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $missing >/dev/null || {
            echo "deps: apt-get could not install: $missing" >&2
            return 1
        }
    fi
    if [ -n "$extra" ]; then
        $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $extra >/dev/null ||
            echo "deps: going on without: $extra" >&2
    fi
    return 0
}
