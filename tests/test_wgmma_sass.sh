#!/bin/bash
# The machine code of the attention kernels for compute capability 9.0: products by wgmma (HGMMA), none by the older
# HMMA; tensor copies (UTMALDG); registers handed from the warpgroup that copies to those that multiply (USETMAXREG);
# nothing spilled to memory; waits (DEPBAR) for groups of products, not for each, as a compiler that sees a hazard makes
# them. Skipped where the program has no such code or cuobjdump is not in the path, the toolkit, or $CUOBJDUMP.
deeprec=${1:?usage: test_wgmma_sass.sh DEEPREC}
cuobjdump=${CUOBJDUMP:-$(command -v cuobjdump || echo "${CUDA_HOME:-/usr/local/cuda}/bin/cuobjdump")}
skip() {
    echo "skipped: $1"
    exit 77
}
"$deeprec" doctor | grep -qE '^  CUDA +built in$' || skip "a build without CUDA"
[ -x "$cuobjdump" ] || skip "no cuobjdump here"
"$cuobjdump" --list-elf "$deeprec" 2>/dev/null | grep -q sm_90a || skip "a build without code for sm_90a"
"$cuobjdump" -sass "$deeprec" | awk '
function judge() {
    if (name == "") return
    seen++
    printf "%s: %d HGMMA, %d HMMA, %d UTMALDG, %d USETMAXREG, %d LDL, %d STL, %d DEPBAR\n", name, n["HGMMA"], n["HMMA"],
        n["UTMALDG"], n["USETMAXREG"], n["LDL"], n["STL"], n["DEPBAR"]
    if (n["HGMMA"] == 0 || 4 * n["DEPBAR"] > n["HGMMA"] || n["UTMALDG"] == 0 || n["USETMAXREG"] != 2) bad = 1
    if (n["HMMA"] + n["LDL"] + n["STL"] > 0) bad = 1
}
/^arch = / { judge(); name = ""; is_own = $3 == "sm_90a" }
/Function :/ { judge(); name = is_own ? $NF : ""; delete n }
is_own && /WARPGROUP[.]DEPBAR/ { n["DEPBAR"]++ }
is_own && match($0, /[ \t](HGMMA|HMMA|UTMALDG|USETMAXREG|LDL|STL)[. ]/) { n[substr($0, RSTART + 1, RLENGTH - 2)]++ }
END {
    judge()
    if (seen == 0) print "no kernel found"
    exit bad || seen == 0
}'
