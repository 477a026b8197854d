#!/bin/bash
# datasets/get.sh on files of this machine: right and wrong digests, archives, names it does not know, nothing left behind
# after an error; then deeprec prepare on what it fetched, and on a full disk (as root only).
deeprec=${1:?usage: test_get.sh DEEPREC}
get=$(cd "$(dirname "$0")/../datasets" && pwd)/get.sh
dir=$(mktemp -d "${TMPDIR:-/tmp}/deeprec-get-XXXXXX") || exit 1
mounted=""
trap '[ -z "$mounted" ] || umount "$mounted"; rm -rf "$dir"' EXIT
cd "$dir" || exit 1
bad=0

# expect CODE TEXT COMMAND...: exit code, and TEXT somewhere in the output.
expect() {
    local code=$1 text=$2 got out
    shift 2
    out=$("$@" 2>&1)
    got=$?
    if [ $got != "$code" ] || ! printf '%s' "$out" | grep -qF -- "$text"; then
        echo "$*: exit code $got, expected $code and \"$text\" in:"
        printf '%s\n' "$out"
        bad=1
    fi
}

same() {
    cmp "$1" "$2" || bad=1
}

is_gone() {
    if [ -e "$1" ]; then
        echo "$1 was left behind"
        bad=1
    fi
}

mkdir from
printf '1::Toy Story (1995)::Comedy\n2::Heat (1995)::Action\n3::Far (1999)::War\n' >from/movies.dat
printf '1::1::5::1\n1::2::5::2\n1::3::5::3\n' >from/ratings.dat
digest=$(sha256sum from/ratings.dat | cut -d' ' -f1)
wrong=$(printf '0%.0s' $(seq 64))
url=file://$dir/from

expect 2 'ml-1m' "$get"
expect 1 'unknown data set nothing' "$get" nothing
expect 1 'unknown option --from' "$get" ml-1m --from x
expect 1 'a name has no slash' "$get" ../x --url "$url/ratings.dat"
expect 1 'not a SHA-256' "$get" own --url "$url/ratings.dat" --sha256 12
expect 1 'download failed' "$get" own --url "$url/none.dat" --sha256 none
is_gone data/own
expect 1 "SHA-256 is $digest, expected $wrong" "$get" own --url "$url/ratings.dat" --sha256 "$wrong"
is_gone data/own
expect 0 'data/own: ratings.dat' "$get" own --url "$url/ratings.dat" --sha256 "$digest"
expect 1 'no digest is known; give --sha256' "$get" own --url "$url/movies.dat"
expect 0 'movies.dat ratings.dat' "$get" own --url "$url/movies.dat" --sha256 none
expect 0 'no --source says how to read it' "$get" own --url "$url/movies.dat" --sha256 none
is_gone data/own.h5
expect 0 '1 users, 3 items, 3 interactions' "$deeprec" prepare ml-1m --input data/own --out own.h5

# What is fetched is prepared, by the options behind "--" too, when there is a program to do it.
export DEEPREC=$deeprec
expect 0 'data/own.h5: 1 users, 3 items, 3 interactions' "$get" own --url "$url/movies.dat" --sha256 none --source ml-1m
expect 0 'name = own' "$deeprec" inspect data/own.h5
expect 1 'no interactions are left' "$get" own --url "$url/movies.dat" --sha256 none --source ml-1m -- --k-core 4
expect 1 'cannot be prepared' "$get" own --url "$url/movies.dat" --sha256 none --source ml-1m -- --k-core 4
same from/ratings.dat data/own/ratings.dat
is_gone "$(echo data/own/.get-*)"

# A file that sources.tsv names by its digest is checked wherever it comes from.
cp from/ratings.dat from/ml-1m.zip
expect 1 'expected a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20' "$get" ml-1m --url "$url/ml-1m.zip"
is_gone data/ml-1m
if command -v unzip >/dev/null; then
    expect 1 'cannot be unpacked' "$get" ml-1m --url "$url/ml-1m.zip" --sha256 none
    is_gone data/ml-1m
fi
if command -v unzip >/dev/null && command -v zip >/dev/null; then
    rm from/ml-1m.zip
    mkdir -p packed/ml-1m && cp from/*.dat packed/ml-1m && (cd packed && zip -q -r ../from/ml-1m.zip ml-1m)
    expect 0 'data/ml-1m.h5: 1 users, 3 items' "$get" ml-1m --url "$url/ml-1m.zip" --sha256 none
    expect 0 'movies.dat ratings.dat' "$get" ml-1m --url "$url/ml-1m.zip" --sha256 none
fi
if command -v xz >/dev/null; then
    xz -k from/ratings.dat
    expect 0 'x: ratings.dat' "$get" any --to x --url "$url/ratings.dat.xz" --sha256 none
    head -c 40 from/ratings.dat.xz >from/cut.dat.xz
    expect 1 'cannot be unpacked' "$get" any --to y --url "$url/cut.dat.xz" --sha256 none
    is_gone y
fi

# The command's own refusals.
expect 2 'unknown source "nothing"' "$deeprec" prepare nothing --out n.h5
expect 1 'from/none: cannot open' "$deeprec" prepare ml-1m --input from/none --out n.h5
expect 1 'movies.dat:1: expected "movieId,title,genres"' "$deeprec" prepare ml-latest --input from --out n.h5 --items from/movies.dat
printf 'movieId,title,genres\n1,Heat,Action\n' >from/movies.csv
expect 1 'no file like ratings.csv' "$deeprec" prepare ml-latest --input from --out n.h5
is_gone n.h5

# A full disk: an error that names the file, the old data set as it was, no temporary file.
expect 0 '20 users' "$deeprec" prepare synthetic --users 20 --out old.h5
mkdir full
if mount -t tmpfs -o size=200k none full 2>/dev/null; then
    mounted=$dir/full
    cp old.h5 full/data.h5
    expect 1 'full/data.h5' "$deeprec" prepare synthetic --users 60000 --out full/data.h5
    same old.h5 full/data.h5
    [ "$(ls full)" = data.h5 ] || { echo "left behind: $(ls full)"; bad=1; }
else
    echo "full disk: left out (needs root)"
fi
exit $bad
