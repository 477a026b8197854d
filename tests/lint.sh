#!/bin/bash
# The house law as far as a machine can check it. Usage: tests/lint.sh BUILD_DIR [ROOT]; ROOT is the tree to judge (default:
# this one). Prints FILE:LINE: rule for each breach and ends with 1 when there is any. A rule whose tool is missing here
# says so and is left out. tests/test_lint.sh holds a breach of every rule.
build=${1:?usage: tests/lint.sh BUILD_DIR [ROOT]}
build=$(cd "$build" 2>/dev/null && pwd) || build=""
cd "${2:-$(dirname "$0")/..}" || exit 2
found=$(mktemp) || exit 2
trap 'rm -f "$found"' EXIT

sources=$(find core cuda mpi datasets launch tests bench \( -name '*.[ch]' -o -name '*.cu' -o -name '*.cuh' \) -type f \
    2>/dev/null | sort)
headers=$(printf '%s\n' $sources | grep -E '\.h$')
[ -n "$sources" ] || { echo "lint: no source files below $PWD" >&2; exit 2; }

# ---- who may include what, and how large things may grow ----
# Inside core: base < compute, comm, text, store < model < rec < episode < reward < learn, eval; a room sees itself and
# what is strictly below. core sees only core; cuda, mpi and datasets see core and themselves; launch sees every room;
# nothing but themselves sees tests and bench. A library's header stays in the room that owns the library.
awk '
BEGIN {
    level["base"] = 1
    level["compute"] = level["comm"] = level["text"] = level["store"] = 2
    level["model"] = 3; level["rec"] = 4
    level["episode"] = 5; level["reward"] = 6; level["learn"] = level["eval"] = 7
}
function breach(text) { printf "%s:%d: %s\n", FILENAME, FNR, text }
function start() {
    split(FILENAME, part, "/")
    room = part[1]; sub_room = part[2]; base = part[length(part)]
    is_free = room == "tests" || room == "bench"
    reason = 0
}
function own_include(name,   to) {
    split(name, to, "/")
    if (is_free) return
    if (to[1] == "tests" || to[1] == "bench") breach(room " must not include " name)
    else if (room == "core" && to[1] != "core") breach("core must not include " name)
    else if ((room == "cuda" || room == "mpi" || room == "datasets") && to[1] != "core" && to[1] != room)
        breach(room " must not include " name)
    else if (room == "core" && to[2] != sub_room && !(level[to[2]] < level[sub_room]))
        breach("core/" sub_room " must not include " name " (not below it)")
}
function library_include(name) {
    if (is_free) return
    if (name ~ /^hdf5/ && FILENAME !~ /^core\/store\/h5[a-z0-9_]*\.c$/) breach("<" name "> only in core/store/h5*.c")
    if (name ~ /^(mpi|mpi-ext)\.h$/ && room != "mpi") breach("<" name "> only in mpi/")
    if (name ~ /^mpi\.h$/ && room == "mpi" && base ~ /^role_/) breach("a role must not include <mpi.h>")
    if (name ~ /^(cuda|cublas|cudnn|curand|nccl|nvml|nvtx)/ && room != "cuda") breach("<" name "> only in cuda/")
    if (name ~ /dnnl/ && FILENAME !~ /^core\/compute\//) breach("<" name "> only in core/compute/")
    if (name ~ /^yaml\.h$/ && FILENAME !~ /^core\/base\//) breach("<" name "> only in core/base/")
    if (name ~ /^pcre2/ && FILENAME !~ /^core\/text\//) breach("<" name "> only in core/text/")
}
FNR == 1 { start() }
FNR <= 12 && /^\/\/.*[Oo]ver 700 lines/ { reason = 1 }
/^[ \t]*#[ \t]*include/ {
    if (match($0, /"[^"]+"/)) {
        name = substr($0, RSTART + 1, RLENGTH - 2)
        if (name ~ /^(core|cuda|mpi|datasets|launch|tests|bench)\//) own_include(name)
        else if (name != "command_list.inc") breach("\"" name "\" is not ours by its full path \"room/file.h\"")
    } else if (match($0, /<[^>]+>/)) {
        name = substr($0, RSTART + 1, RLENGTH - 2)
        if (name ~ /^(core|cuda|mpi|datasets|launch|tests|bench)\/.*\.h$/ && name !~ /^cuda\/std/)
            breach("our own headers in quotes, not <" name ">")
        else library_include(name)
    }
}
FNR == 701 && !reason { breach("over 700 lines; say why at the top (\"Over 700 lines: ...\") or split") }
FNR == 1001 { breach("over 1000 lines") }
/^[A-Za-z].*[^=] \{$/ && !/^(typedef|struct|enum|union|extern)/ { opened = FNR }
/^}/ { if (opened && FNR - opened > 121) { printf "%s:%d: function of %d lines (120 at most)\n", FILENAME, opened, FNR - opened - 1 } opened = 0 }
' $sources >>"$found"

# ---- calls that belong to one place ----
# Comments and strings are blanked first; a call through a table (x.free(), x->exit()) is nobody'\''s business.
awk '
function breach(text) { printf "%s:%d: %s\n", FILENAME, FNR, text }
function code_of(line,   out, i, c, d, n) {
    out = ""; n = length(line)
    for (i = 1; i <= n; i++) {
        c = substr(line, i, 1); d = substr(line, i, 2)
        if (in_comment) { if (d == "*/") { in_comment = 0; i++ } continue }
        if (quote != "") { if (c == "\\") i++; else if (c == quote) { quote = ""; out = out c } continue }
        if (d == "//") break
        if (d == "/*") { in_comment = 1; i++; continue }
        if (c == "\"" || c == "'"'"'") quote = c
        out = out c
    }
    quote = ""
    return out
}
function calls(code, names) { return code ~ ("(^|[^A-Za-z0-9_.>])(" names ")[ \t]*\\(") }
FNR == 1 {
    in_comment = 0; quote = ""
    split(FILENAME, part, "/"); room = part[1]
}
room == "tests" || room == "bench" { next }
{
    code = code_of($0)
    if (calls(code, "malloc|calloc|realloc|free|strdup|strndup|aligned_alloc|posix_memalign|asprintf|vasprintf|reallocarray") &&
        FILENAME != "core/base/alloc.c") breach("raw allocation; use core/base/alloc.h")
    if (calls(code, "exit|_exit|_Exit|quick_exit|abort|MPI_Abort|assert") && FILENAME != "launch/main.c" &&
        !(FILENAME == "core/base/status.c" && code ~ /abort/) && !(FILENAME ~ /^mpi\/world[a-z_]*\.c$/ && code ~ /(MPI_Abort|_exit)/))
        breach("only launch/main.c (and mpi/world.c for MPI_Abort) ends the process")
    if (room != "launch" && (calls(code, "printf|vprintf|puts|putchar|putc") || code ~ /f(printf|puts|write)[ \t]*\([^;]*stdout/))
        breach("only launch/ prints to standard output")
}
' $sources >>"$found"

# ---- every test program says which runs it belongs to ----
for file in $(printf '%s\n' $sources | grep -E '^tests/test_[a-z0-9_]*\.c$'); do
    grep -q '^// labels: [a-z]' "$file" || echo "$file:2: no line \"// labels: ...\" (a formatter may have joined it)" >>"$found"
done

# ---- a script that names its interpreter can be started by its name ----
find . \( -name .git -o -name build -o -name runs \) -prune -o -type f \( -name '*.sh' -o -name '*.sbatch' -o -path './.ci/*' \) -print |
    sed 's|^\./||' | sort | while read -r script; do
    [ -x "$script" ] || [ "$(head -c 2 "$script")" != '#!' ] || echo "$script:1: begins with #! and is not executable" >>"$found"
done

# ---- exported names ----
if [ -n "$build" ] && ls "$build"/libdr_*.a >/dev/null 2>&1 && command -v nm >/dev/null 2>&1; then
    for library in "$build"/libdr_*.a; do
        nm -g --defined-only "$library" 2>/dev/null | awk -v library="$(basename "$library")" '
            /:$/ { object = $0; sub(/:$/, "", object) }
            NF == 3 && $3 !~ /^(dr_|__|_ZT|\.)/ { printf "%s:0: %s exports %s without the prefix dr_\n", library, object, $3 }'
    done >>"$found"
else
    echo "lint: exported names not checked (no libraries in the build folder)"
fi

# ---- every header compiles alone, as C17 and, but for a room's own *_internal.h, as C++17 ----
include_flags="-D_GNU_SOURCE -I."
command -v mpicc >/dev/null 2>&1 && include_flags="$include_flags $(mpicc --showme:compile 2>/dev/null)"
command -v nvcc >/dev/null 2>&1 && include_flags="$include_flags -isystem $(dirname "$(dirname "$(command -v nvcc)")")/include"
check_headers() { # check_headers COMPILER STANDARD LANGUAGE [PATTERN]: headers that match are left out
    command -v "$1" >/dev/null 2>&1 || {
        echo "lint: headers not checked as $2 (no $1 here)"
        return
    }
    [ -n "$headers" ] || return
    printf '%s\n' $headers | grep -vE "^tests/$4" | CHECK="$1 $2 $3" FLAGS="$include_flags" xargs -r -P "$(nproc)" -I '{}' sh -c '
        set -- "$1" $CHECK
        printf "#include \"%s\"\n" "$1" | $2 -std=$3 -x $4 $FLAGS -Wall -Wextra -Werror -fsyntax-only - 2>&1 | grep -m1 -E "error|fatal" |
            sed "s|^|$1:1: does not compile alone as $3: |"' sh '{}' >>"$found"
}
check_headers gcc c17 c
check_headers g++ c++17 c++ '|_internal\.h$'

# ---- one format ----
if command -v clang-format >/dev/null 2>&1 && clang-format --version | grep -q 'version 14\.'; then
    printf '%s\n' $sources | grep -E '\.[ch]$' | xargs clang-format --dry-run 2>&1 |
        sed -n 's/^\([^:]*:[0-9]*\):[0-9]*: warning: code should be clang-formatted.*/\1: not as clang-format 14 writes it/p' |
        awk -F: '!seen[$1]++' >>"$found"
else
    echo "lint: format not checked (clang-format 14 is not here)"
fi

# ---- words that must not be there: notes to oneself, and paths of one machine ----
words="TO""DO|FIX""ME|XX""X[: ]|/wo""rk/|/ho""me/[a-z]"
find . \( -name .git -o -name build -o -name runs -o -name data -o -name __pycache__ \) -prune -o -type f -print |
    sed 's|^\./||' | sort | tr '\n' '\0' | xargs -0 grep -InE "$words" /dev/null 2>/dev/null |
    sed -E 's/^([^:]*:[0-9]+):(.*)$/\1: forbidden word or path: \2/' | cut -c1-200 >>"$found"

if [ -s "$found" ]; then
    cat "$found"
    echo "lint: $(wc -l <"$found") breaches"
    exit 1
fi
echo "lint: $(printf '%s\n' $sources | wc -l) files, no breach"
