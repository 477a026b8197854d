#!/bin/bash
# Shows that the lint can fail: a scratch tree with one breach of every rule, each of which must be reported at its line,
# and a clean tree, which must pass.
here=$(cd "$(dirname "$0")" && pwd)
lint=$here/lint.sh
dir=$(mktemp -d "${TMPDIR:-/tmp}/deeprec-lint-XXXXXX") || exit 1
trap 'rm -rf "$dir"' EXIT
bad=0

put() { # put PATH: standard input into the tree
    mkdir -p "$dir/tree/$(dirname "$1")"
    cat >"$dir/tree/$1"
}

reset() {
    rm -rf "$dir/tree" "$dir/build"
    mkdir -p "$dir/tree" "$dir/build"
    cp "$here/../.clang-format" "$dir/tree/"
    printf '// A header.\n#ifndef DR_CORE_BASE_ONE_H\n#define DR_CORE_BASE_ONE_H\n\nint dr_one(void);\n\n#endif\n' | put core/base/one.h
    printf '// A body. printf("x") in a comment is fine.\n#include "core/base/one.h"\n\nint dr_one(void) {\n    return 1;\n}\n' | put core/base/one.c
}

library() { # library SOURCE_TEXT: makes build/libdr_base.a
    printf '%s\n' "$1" | gcc -x c -c -o "$dir/build/one.o" - && ar rc "$dir/build/libdr_base.a" "$dir/build/one.o"
}

expect() { # expect TEXT...: the lint must fail and print each text
    local out
    out=$(bash "$lint" "$dir/build" "$dir/tree") && { echo "lint passed, expected: $1"; bad=1; return; }
    for text in "$@"; do
        printf '%s\n' "$out" | grep -qF "$text" || { echo "lint did not report: $text"; printf '%s\n' "$out"; bad=1; }
    done
}

includes() { # includes FILE INCLUDE TEXT: FILE with that include must be reported at line 2
    reset
    printf '// A file.\n#include %s\n' "$2" | put "$1"
    expect "$1:2: $3"
}

reset
library 'int dr_one(void) { return 1; }'
out=$(bash "$lint" "$dir/build" "$dir/tree") || { echo "a clean tree does not pass:"; echo "$out"; bad=1; }

includes core/model/a.c '<mpi.h>' '<mpi.h> only in mpi/'
includes core/model/a.c '<cuda_runtime.h>' '<cuda_runtime.h> only in cuda/'
includes mpi/a.c '<nccl.h>' '<nccl.h> only in cuda/'
includes core/store/dataset.c '<hdf5.h>' '<hdf5.h> only in core/store/h5*.c'
includes core/learn/a.c '<oneapi/dnnl/dnnl.h>' '<oneapi/dnnl/dnnl.h> only in core/compute/'
includes mpi/role_worker.c '<mpi.h>' 'a role must not include <mpi.h>'
includes core/base/a.c '"launch/cli.h"' 'core must not include launch/cli.h'
includes core/base/a.c '"mpi/world.h"' 'core must not include mpi/world.h'
includes core/base/a.c '"core/text/tokenizer.h"' 'core/base must not include core/text/tokenizer.h'
includes core/text/a.c '"core/store/dataset.h"' 'core/text must not include core/store/dataset.h'
includes core/rec/a.c '"core/episode/protocol.h"' 'core/rec must not include core/episode/protocol.h'
includes core/episode/a.c '"core/reward/reward.h"' 'core/episode must not include core/reward/reward.h'
includes datasets/a.c '"mpi/world.h"' 'datasets must not include mpi/world.h'
includes mpi/a.c '"cuda/device_probe.h"' 'mpi must not include cuda/device_probe.h'
includes cuda/a.c '"mpi/world.h"' 'cuda must not include mpi/world.h'
includes launch/a.c '"tests/check.h"' 'launch must not include tests/check.h'
includes launch/a.c '"cli.h"' '"cli.h" is not ours by its full path'

body() { # body FILE CODE TEXT: FILE with that code must be reported at line 3
    reset
    printf '// A file.\nvoid dr_f(void) {\n    %s\n}\n' "$2" | put "$1"
    expect "$1:3: $3"
}

body core/text/a.c 'void *p = malloc(3);' 'raw allocation'
body core/text/a.c 'free(0);' 'raw allocation'
body launch/a.c 'char *c = strdup("x");' 'raw allocation'
body core/text/a.c 'exit(1);' 'only launch/main.c'
body launch/cli.c 'exit(1);' 'only launch/main.c'
body core/text/a.c 'abort();' 'only launch/main.c'
body mpi/a.c 'MPI_Abort(0, 1);' 'only launch/main.c'
body core/text/a.c 'printf("x");' 'only launch/ prints'
body core/text/a.c 'fprintf(stdout, "x");' 'only launch/ prints'
body datasets/a.c '// TO''DO later' 'forbidden word or path'
body datasets/a.c 'const char *p = "/wo''rk/x";' 'forbidden word or path'

reset
{ echo '// A long one.'; for i in $(seq 2 1001); do echo "int dr_v$i;"; done; } | put core/base/long.c
expect 'core/base/long.c:701: over 700 lines' 'core/base/long.c:1001: over 1000 lines'
reset
{ echo '// Over 700 lines: a table.'; for i in $(seq 2 900); do echo "int dr_v$i;"; done; } | put core/base/long.c
bash "$lint" "$dir/build" "$dir/tree" >/dev/null || { echo "a long file with its reason does not pass"; bad=1; }

reset
{ echo '// A file.'; echo 'int dr_long(int x) {'; for i in $(seq 1 130); do echo '    x++;'; done; echo '    return x;'; echo '}'; } | put core/base/a.c
expect 'core/base/a.c:2: function of'

reset
printf '// A test.\nint main(void) {\n    return 0;\n}\n' | put tests/test_a.c
expect 'tests/test_a.c:2: no line'

if command -v nm >/dev/null 2>&1; then
    reset
    library 'int stray(void) { return 1; }'
    expect 'exports stray without the prefix dr_'
fi
reset
printf '// Needs what it does not include.\nint dr_f(size_t n);\n' | put core/base/a.h
expect 'core/base/a.h:1: does not compile alone as c17'
if command -v g++ >/dev/null 2>&1; then
    reset
    printf '// C only.\nint dr_f(int class);\n' | put core/base/a.h
    expect 'core/base/a.h:1: does not compile alone as c++17'
fi
reset
printf '#!/bin/sh\necho a\n' | put launch/a.sh
printf '# sourced\nb=1\n' | put launch/b.sh
expect 'launch/a.sh:1: begins with #! and is not executable'
if command -v clang-format >/dev/null 2>&1 && clang-format --version | grep -q 'version 14\.'; then
    reset
    printf '// A file.\nint   dr_f( void );\n' | put core/base/a.c
    expect 'core/base/a.c:2: not as clang-format 14 writes it'
fi

[ $bad = 0 ] && echo "every rule of the lint can fail"
exit $bad
