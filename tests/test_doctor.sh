#!/bin/bash
# deeprec doctor: names every library with a version, ends with a verdict, needs no MPI run, no driver and no toolkit.
deeprec=${1:?usage: test_doctor.sh DEEPREC}
dir=$(mktemp -d "${TMPDIR:-/tmp}/deeprec-doctor-XXXXXX") || exit 1
trap 'rm -rf "$dir"' EXIT
bad=0
want() { # want PATTERN: a line of the report
    grep -qE -- "$1" "$dir/report" || { echo "the report lacks: $1"; bad=1; }
}

"$deeprec" doctor >"$dir/report" 2>"$dir/error"
code=$?
want '^  version +deeprec [0-9]+\.[0-9]+\.[0-9]+$'
want '^  compiler +[A-Za-z]+ .*[0-9]'
want '^  CUDA +(built in|left out)$'
want '^  features +AVX2 (yes|no), AVX-512 (yes|no), BF16 (yes|no), AMX (yes|no)$'
want '^  memory +[0-9]+ MB, [0-9]+ MB available$'
want '^  cores +[0-9]+ online, [0-9]+ OpenMP threads$'
want '^  oneDNN +[0-9]+\.[0-9]+\.[0-9]+, '
want '^  HDF5 +[0-9]+\.[0-9]+\.[0-9]+'
want '^  MPI +.*[0-9]+\.[0-9]+.*, standard [0-9]\.[0-9]$'
want '^devices$'
want '^verdict: '
if grep -q '^  CUDA  *built in' "$dir/report"; then # what this build knows beside what this machine has
    want '^  CUDA runtime +built with [0-9]+\.[0-9]+; found [0-9]+\.[0-9]+'
    want '^  driver +built for CUDA [0-9]+\.[0-9]+; (found for CUDA [0-9]+\.[0-9]+|not found)$'
    for library in NCCL cuBLASLt; do
        want "^  $library +built (with [0-9]+\.[0-9]+\.[0-9]+|without it, for there was no [^;]*\.h[^;]*); (found [0-9]+\.[0-9]+\.[0-9]+|not found)\$"
    done
fi
if [ $code = 0 ]; then
    want '^verdict: ready to train on this machine \(0 problems'
else
    want 'PROBLEM:'
fi
# What the processor offers is what the kernel says.
if [ -r /proc/cpuinfo ]; then
    for pair in AVX2:avx2 AVX-512:avx512f AMX:amx_bf16; do
        if grep -qw "${pair#*:}" /proc/cpuinfo; then want "features.*${pair%%:*} yes"; else want "features.*${pair%%:*} no"; fi
    done
fi
# The binary must not need the CUDA toolkit's libraries to start.
if command -v ldd >/dev/null 2>&1; then
    ldd "$deeprec" | grep -E 'libcudart|libcublas|libnccl|libcuda\.so' && { echo "CUDA libraries are linked dynamically"; bad=1; }
fi
# A tiny disk is a problem and makes the exit code 1.
if [ "$(id -u)" = 0 ] && mkdir "$dir/small" && mount -t tmpfs -o size=1m tmpfs "$dir/small" 2>/dev/null; then
    TMPDIR=$dir/small "$deeprec" doctor >"$dir/report" 2>/dev/null && { echo "a full disk is no problem?"; bad=1; }
    want 'PROBLEM: scratch space needs 100 MB free'
    umount "$dir/small"
fi
[ $bad = 0 ] || cat "$dir/report" "$dir/error"
exit $bad
