#!/bin/bash
# The CUDA body under CUDA 12, of which NVIDIA's own device compiler is to be had as a library. In a build folder beside the
# given program: every kernel by NVRTC and ptxas of that version, for the architectures that the build has by default, with the
# entry functions of this machine's nvcc; the host code against that version's headers; and a whole program, kernels by
# clang, linked to that version's runtime. Wheels are unpacked in the folder $DR_CUDA12 by
#   pip install --no-deps --target $DR_CUDA12 nvidia-cuda-{nvrtc,nvcc,runtime}-cu12==12.4.*
# and, for the host code's optional parts, nvidia-cublas-cu12 and nvidia-nccl-cu12. Skipped without; prints what it left out.
set -o pipefail
deeprec=$(readlink -f "${1:?usage: test_cuda12.sh DEEPREC}")
cd "$(dirname "$0")/.." || exit 1
build=$(dirname "$deeprec")
skip() {
    echo "skipped: $1"
    exit 77
}
[ -n "$DR_CUDA12" ] || skip "DR_CUDA12 names no folder of CUDA 12's wheels (the head of tests/test_cuda12.sh says how to make it)"
wheels=$(readlink -f "$DR_CUDA12")/nvidia
nvrtc=$wheels/cuda_nvrtc/lib/libnvrtc.so.12
ptxas=$wheels/cuda_nvcc/bin/ptxas
for file in "$nvrtc" "$ptxas" "$wheels/cuda_runtime/include/cuda_runtime.h" "$wheels/cuda_nvcc/include/crt/mma.h"; do
    [ -e "$file" ] || skip "no $file"
done
version=$("$ptxas" --version | grep -oE 'V[0-9.]+' | tr -d V)
[ -n "$version" ] || skip "$ptxas does not run"
work=$build/cuda12/$version
rm -rf "$work"
mkdir -p "$work/toolkit/include" "$work/toolkit/bin" "$work/objects"
failed=0
fail() {
    echo "FAILED   $*"
    failed=1
}
# One folder of headers, as a toolkit has it: those of another version, in the compiler's own folders, come behind.
for folder in "$wheels"/*/include; do
    cp -rs "$folder"/. "$work/toolkit/include/" 2>/dev/null # each wheel has its own __init__.py
done
echo "CUDA $version"

# ---- kernels ----

cat >"$work/ask.cmake" <<END
include($PWD/cuda/toolkit.cmake)
dr_cuda_architectures($version list)
dr_cuda_wgmma_architectures($version "\${list}" wgmma)
file(WRITE $work/architectures "\${list}\n\${wgmma}\n")
END
cmake -P "$work/ask.cmake" || exit 1
unique() {
    tr ';' '\n' | sed 's/-.*//' | sort -un -k1.1
}
common=$(sed -n 1p "$work/architectures" | unique)
[ -n "$common" ] || { echo "FAILED: no architectures"; exit 1; }
wgmma=$(sed -n 2p "$work/architectures" | unique)
cc -std=c17 -D_GNU_SOURCE -O1 -Wall -Wextra -Werror tests/cuda12/ptx_of.c -o "$work/ptx_of" || exit 1
nvcc=$(command -v nvcc || echo "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc")
[ -x "$nvcc" ] || nvcc=""

entries() { # entries PTX: names of its entry functions
    sed -nE 's/.*\.entry ([A-Za-z0-9_$]+).*/\1/p' "$1" | sort
}

# Kernels, most registers of one, bytes spilled to memory by all (stores), of what ptxas said.
table_line() {
    awk '/Compiling entry function/ { n++ }
        match($0, /[0-9]+ bytes spill stores/) { spilled += substr($0, RSTART, RLENGTH) + 0 }
        match($0, /Used [0-9]+ registers/) { r = substr($0, RSTART + 5) + 0; if (r > most) most = r }
        END { printf "%7d %9d %7d\n", n, most, spilled }' "$1"
}

kernels() { # kernels SOURCE ARCHITECTURE DEFINITION...
    local source=$1 architecture=$2 name ptx line
    shift 2
    name=$(basename "$source" .cu)-$architecture
    ptx=$work/$name.ptx
    if ! "$work/ptx_of" "$nvrtc" "$source" --gpu-architecture="compute_$architecture" --std=c++17 \
        --device-as-default-execution-space -I tests/cuda12 -I . -I "$work/toolkit/include" "$@" >"$ptx" 2>"$work/$name.log"; then
        fail "$source for compute_$architecture"
        head -n 20 "$work/$name.log"
        return
    fi
    if ! "$ptxas" -v -Werror -arch="sm_$architecture" "$ptx" -o "$work/$name.cubin" >"$work/$name.log" 2>&1; then
        fail "ptxas of $source for sm_$architecture"
        head -n 20 "$work/$name.log"
        return
    fi
    line=$(table_line "$work/$name.log")
    printf '%-29s %6s %s\n' "$(basename "$source")" "$architecture" "$line"
    read -r n _ spilled <<<"$line"
    [ "$n" -gt 0 ] && [ "$n" = "$(entries "$ptx" | wc -l)" ] || fail "$source: $n kernels"
    [[ $source != *_wgmma* ]] || [ "$spilled" = 0 ] || fail "$source: $spilled bytes spilled" # as tests/test_wgmma_sass.sh
    [ -n "$nvcc" ] || return
    "$nvcc" -ptx -std=c++17 -arch="compute_$architecture" -I. "$@" "$source" -o "$work/$name.nvcc.ptx" || fail "nvcc of $source"
    diff <(entries "$work/$name.nvcc.ptx") <(entries "$ptx") || fail "$source: other entry functions than nvcc's"
}

printf '%-29s %6s %7s %9s %7s\n' file arch kernels registers spilled
for source in cuda/*.cu; do
    if [[ $source = *_wgmma* ]]; then
        for architecture in $wgmma; do kernels "$source" "$architecture" -DDR_CUDA_WGMMA_BUILT=1; done
    else
        for architecture in $common; do kernels "$source" "$architecture"; done
    fi
done
[ -n "$nvcc" ] && echo "entry functions held against $("$nvcc" --version | grep -oE 'V[0-9.]+')" || echo "left out: entry functions of nvcc, which is not here"

# ---- host code ----

# The build's own command for a source of launch/, with CUDA and these headers instead.
command=$(ninja -C "$build" -t commands deeprec 2>/dev/null | grep -E ' -c [^ ]*/launch/main\.c$' |
    sed -E 's/ -M[DTF]( [^ -][^ ]*)?//g; s/ -o [^ ]+ -c [^ ]+$//; s/ -DDR_HAVE_CUDA(_KERNELS)?=[01]//g; s# -isystem [^ ]*cuda[^ ]*##g')
link=$(ninja -C "$build" -t commands deeprec 2>/dev/null | grep -oE ' -o deeprec .*' |
    sed -E 's/ -o deeprec //; s/ && :$//; s#[^ ]*(libdr_cuda|libcudart|/librt\.)[^ ]*##g')
[ -n "$command" ] && [ -n "$link" ] || { echo "left out: host code, no Ninja build in $build"; exit $failed; }
parts=""
[ -e "$work/toolkit/include/cublasLt.h" ] || parts="$parts -DDR_WITHOUT_CUBLASLT"
[ -e "$work/toolkit/include/nccl.h" ] || parts="$parts -DDR_WITHOUT_NCCL"
sources=(cuda/*.c launch/*.c)
for source in "${sources[@]}"; do
    # shellcheck disable=SC2086
    eval "$command -DDR_HAVE_CUDA=1 -DDR_HAVE_CUDA_KERNELS=1 $parts" -isystem "$work/toolkit/include" -c "$source" \
        -o "$work/objects/$(echo "$source" | tr '/.' '__').o" || fail "$source against the headers of CUDA $version"
done
if [ -e "$work/toolkit/include/cublasLt.h" ]; then # what the emulated library takes for granted
    cc -std=c17 -Wall -Wextra -Werror -isystem "$work/toolkit/include" -c tests/emulated/cublas_lt_values.c -o "$work/values.o" ||
        fail "cublasLt.h of CUDA $version"
fi
echo "host code: ${#sources[@]} files$parts"

# ---- a whole program ----

fatbinary=${nvcc:+$(dirname "$nvcc")/fatbinary}
clang=${DR_CLANG_CUDA:-$(command -v clang++-19 || command -v clang++)}
if ! [ -x "$fatbinary" ] || ! [ -e "$wheels/cuda_nvcc/nvvm/libdevice/libdevice.10.bc" ]; then
    echo "left out: the whole program, no fatbinary or libdevice here"
    exit $failed
fi
if [ -z "$clang" ] || [ "$("$clang" -dumpversion | cut -d. -f1)" -lt 18 ]; then
    echo "left out: the whole program, no clang 18 or newer here (Debian: clang-19; \$DR_CLANG_CUDA names one)"
    exit $failed
fi
ln -s "$ptxas" "$work/toolkit/bin/ptxas"
ln -s "$PWD/tests/cuda12/fatbinary.sh" "$work/toolkit/bin/fatbinary"
ln -s "$wheels/cuda_nvcc/nvvm" "$work/toolkit/nvvm"
echo "CUDA Version $version" >"$work/toolkit/version.txt"
# A check of the host side and a second compiler, not a program to use: clang 19 ignores __grid_constant__, so that tensor maps
# are copies, and warns of versions that are newer than those it knows.
for source in cuda/*.cu; do
    flags=""
    if [[ $source != *_wgmma* ]]; then
        for architecture in $common; do
            [ "$architecture" -ge 100 ] || flags="$flags --cuda-gpu-arch=sm_$architecture"
        done
    elif [ -n "$wgmma" ]; then
        flags="--cuda-gpu-arch=sm_90a -DDR_CUDA_WGMMA_BUILT=1"
    else
        flags="--cuda-gpu-arch=sm_90"
    fi
    # shellcheck disable=SC2086
    FATBINARY=$fatbinary "$clang" -x cuda --cuda-path="$work/toolkit" -isystem "$work/toolkit/include" $flags -std=c++17 -O2 -I. \
        -fno-exceptions -Wall -Wextra -Werror -Wno-unknown-cuda-version -Wno-unknown-attributes -c "$source" \
        -o "$work/objects/$(basename "$source").o" || fail "$source by $clang"
done
runtime=$wheels/cuda_runtime/lib
# shellcheck disable=SC2086
(cd "$build" && cc -o "$work/deeprec" "$work"/objects/*.o -Wl,-rpath,"$runtime" -Wl,--start-group $link -Wl,--end-group \
    "$runtime/libcudart.so.12" -ldl -lm) || fail "linking to the runtime of CUDA $version"
said=$("$work/deeprec" doctor)
echo "$said" | grep -iE 'cuda'
echo "$said" | grep -qE "^  CUDA +built in$" || fail "the program has no CUDA body"
echo "$said" | grep -qE "^  CUDA runtime .*; found ${version%.*}" || fail "the program has another runtime"
exit $failed
