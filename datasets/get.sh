#!/usr/bin/env bash
# Downloads a data set that sources.tsv names, checks its digest, unpacks it and prepares it: FOLDER and FOLDER.h5.
#   datasets/get.sh NAME [--to FOLDER] [--url URL] [--sha256 DIGEST] [--source S] [-- OPTIONS OF deeprec prepare]
# The default folder is data/NAME; --source says how to read a data set that is not listed (`deeprec prepare --help`).
# deeprec is $DEEPREC, the release build of this tree, or the one in PATH; without it the files are only fetched.
# --url takes one file from elsewhere in place of the listed ones (file:///... too); its digest is the listed one when
# the file has the same name, else what --sha256 says. --sha256 none takes files unchecked for which no digest is
# listed, and the one of --url. No arguments: the list.
# .zip and .xz are unpacked; .gz stays, `deeprec prepare` reads it as it is. Nothing is left behind after an error.
set -u
here=$(cd "$(dirname "$0")" && pwd) || exit 1
list=$here/sources.tsv

fail() {
    echo "get.sh: $*" >&2
    exit 1
}

known() { grep -v '^#' "$list" | cut -f1 | sort -u | tr '\n' ' '; }

name="" folder="" url="" digest="" source="" options=()
while [ $# -gt 0 ]; do
    case $1 in
    --to | --url | --sha256 | --source)
        [ $# -ge 2 ] || fail "$1 needs a value"
        case $1 in --to) folder=$2 ;; --url) url=$2 ;; --source) source=$2 ;; *) digest=$2 ;; esac
        shift 2
        ;;
    --)
        shift
        options=("$@")
        break
        ;;
    -h | --help)
        sed -n '2,10s/^# //p' "$0"
        exit 0
        ;;
    -*) fail "unknown option $1" ;;
    *)
        [ -z "$name" ] || fail "unexpected argument $1"
        name=$1
        shift
        ;;
    esac
done
[ -n "$name" ] || {
    echo "usage: datasets/get.sh NAME [--to FOLDER] [--url URL] [--sha256 DIGEST] [--source S] [-- OPTIONS]; names: $(known)" >&2
    exit 2
}
case $name in */* | .*) fail "a name has no slash and begins with no dot: $name" ;; esac
folder=${folder:-data/$name}

rows=$(awk -F '\t' -v name="$name" '!/^#/ && $1 == name { print $3 "\t" $4 }' "$list")
source=${source:-$(awk -F '\t' -v name="$name" '!/^#/ && $1 == name { print $2; exit }' "$list")}
if [ -n "$url" ]; then
    listed=$(printf '%s\n' "$rows" | awk -F '\t' -v file="${url##*/}" '{ n = split($1, part, "/") } part[n] == file { print $2 }')
    rows=$(printf '%s\t%s' "$url" "${listed:--}")
fi
[ -n "$rows" ] || fail "unknown data set $name; known: $(known)"
[ -z "$digest" ] || [ "$digest" = none ] || [ "$(printf '%s\n' "$rows" | wc -l)" = 1 ] ||
    fail "$name is several files: --sha256 goes with --url"
case $digest in "" | none) ;; *) printf '%s' "$digest" | grep -qxE '[0-9a-fA-F]{64}' || fail "not a SHA-256: $digest" ;; esac

mkdir -p "$folder" || fail "cannot make $folder"
work=$(mktemp -d "$folder/.get-XXXXXX") || fail "cannot write in $folder"
trap 'rm -rf "$work"; rmdir "$folder" 2>/dev/null' EXIT

fetch() { # fetch URL FILE
    if command -v curl >/dev/null 2>&1; then
        curl --fail --location --silent --show-error --connect-timeout 20 --retry 3 -o "$2" "$1"
    elif [ "${1#file://}" != "$1" ]; then
        cp "${1#file://}" "$2"
    elif command -v wget >/dev/null 2>&1; then
        wget --quiet --tries 3 -O "$2" "$1"
    else
        fail "neither curl nor wget is here"
    fi
}

unpack() { # unpack FILE, below $work/out; names of folders inside an archive are dropped
    case $1 in
    *.zip)
        command -v unzip >/dev/null 2>&1 || fail "unzip is not here"
        unzip -q -j -o "$1" -d "$work/out"
        ;;
    *.xz)
        command -v xz >/dev/null 2>&1 || fail "xz is not here"
        xz -dc "$1" >"$work/out/$(basename "$1" .xz)"
        ;;
    *) mv "$1" "$work/out/" ;;
    esac
}

mkdir "$work/out"
while IFS=$'\t' read -r address expected; do
    file=$work/${address##*/}
    if [ -n "$digest" ] && { [ "$digest" != none ] || [ -n "$url" ]; }; then
        expected=$(printf '%s' "$digest" | tr A-F a-f)
    elif [ "$digest" = none ] && [ "$expected" = - ]; then
        expected=none
    fi
    [ "$expected" != - ] || fail "$address: no digest is known; give --sha256 DIGEST, or --sha256 none to take it unchecked"
    echo "$address"
    fetch "$address" "$file" || fail "$address: download failed"
    found=$(sha256sum "$file" | cut -d' ' -f1)
    if [ "$expected" = none ]; then
        echo "  SHA-256 $found (not checked)"
    elif [ "$expected" != "$found" ]; then
        fail "$address: SHA-256 is $found, expected $expected"
    fi
    unpack "$file" || fail "$address: cannot be unpacked"
done <<<"$rows"
mv -f "$work/out/"* "$folder/" || fail "cannot write in $folder"
echo "$folder: $(ls "$folder" | tr '\n' ' ')"

[ -n "$source" ] || {
    echo "not prepared: no --source says how to read it"
    exit 0
}
deeprec=${DEEPREC:-}
[ -n "$deeprec" ] || deeprec=$here/../build/release/deeprec
[ -x "$deeprec" ] || deeprec=$(command -v deeprec) || {
    echo "not prepared: deeprec is not built yet; then: deeprec prepare $source --input $folder --out $folder.h5"
    exit 0
}
"$deeprec" prepare "$source" --input "$folder" --name "$name" --out "$folder.h5" ${options[@]+"${options[@]}"} ||
    fail "$folder: cannot be prepared"
