# Programs for tests/gpu.sh, which sources this: built here, packed for another machine, or unpacked. Reads $root, $work, $bin.

op_tests="test_backend_cuda test_draws_cuda test_cuda_products test_head_cuda test_attention_cuda test_decode_cuda test_learner_cuda test_retrieval_cuda"
small_tests=$(printf '%s_small ' $op_tests) # with small cases, for compute-sanitizer
programs="deeprec bench_ops bench_engine bench_table $op_tests $small_tests gpu_nccl"
emulated="deeprec bench_ops bench_engine gpu_nccl $op_tests"

build() { # FOLDER ARCHITECTURES|none|emulated
    local cuda=(-DDR_CUDA=OFF) targets="deeprec bench_ops bench_engine bench_table"
    case $2 in
        none) ;;
        emulated) targets="bench_table $(printf '%s_emulated ' $emulated)" ;;
        *) cuda=(-DDR_CUDA=AUTO "-DCMAKE_CUDA_ARCHITECTURES=$2") targets=$programs ;;
    esac
    cmake -S . -B "$1" -G Ninja -DCMAKE_BUILD_TYPE=Release "${cuda[@]}" &&
        cmake --build "$1" -j "$(nproc)" --target $targets | tail -n 3
    return "${PIPESTATUS[0]}"
}

# The emulated programs by the names of the others.
name_emulated() { # FOLDER of the build
    local name
    mkdir -p "$bin" || return 1
    ln -sf "$1/bench_table" "$bin/bench_table" || return 1
    for name in $emulated; do ln -sf "$1/tests/emulated/${name}_emulated" "$bin/$name" || return 1; done
}

pack() {
    local dir=$1 built=build/gpu-pack file plugins pmix
    build "$built" 90-real || return 1
    rm -rf "$dir/bin" "$dir/lib" "$dir/share" "$dir/pack.tar.gz"
    mkdir -p "$dir/bin" "$dir/lib/plugins" "$dir/lib/pmix" "$dir/share" || return 1
    for file in $programs; do
        [ -x "$built/$file" ] || { echo "$built/$file is not there: no CUDA toolkit?" >&2; return 1; }
        strip -o "$dir/bin/$file" "$built/$file" || return 1
    done
    for file in mpirun orted; do cp -L "$(command -v $file)" "$dir/bin/" || return 1; done
    plugins=$(ompi_info --parsable --path pkglibdir | sed 's/.*://')
    cp "$plugins"/*.so "$dir/lib/plugins/" || return 1
    pmix=$(ldd "$plugins"/mca_pmix_*.so | awk '$1 ~ /^libpmix/ { print $3; exit }')
    [ -z "$pmix" ] || cp "$(dirname "$(readlink -f "$pmix")")"/pmix/*.so "$dir/lib/pmix/" || return 1
    cp -r /usr/share/openmpi "$dir/share/" 2>/dev/null || echo "without Open MPI's help texts"
    # All but the C library, which belongs to the machine's loader, and what the driver brings. Plugins for networks that
    # need more than the programs do are left out.
    for file in "$dir"/lib/plugins/*; do
        case $file in *ucx* | *ofi* | *psm* | *portals* | *verbs* | *openib* | *usnic*) rm "$file" ;; esac
    done
    ldd "$dir"/bin/* "$dir"/lib/plugins/*.so "$dir"/lib/pmix/*.so | awk '$2 == "=>" && $3 ~ /^\// { print $3 }' | sort -u |
        grep -vE '/(libc|libm|libdl|librt|libpthread|libresolv|libutil|ld-linux[^/]*|libcuda|libnvidia[^/]*|libnccl)\.so' |
        while read -r file; do cp -L "$file" "$dir/lib/"; done
    source_state > "$dir/state" || return 1
    tar -C "$dir" -czf "$dir/pack.tar.gz" bin lib share state && rm -rf "$dir/bin" "$dir/lib" "$dir/share" || return 1
    local kib
    kib=$(du -sk "$dir" | cut -f1)
    echo "$dir: $((kib / 1024)) MiB"
    [ "$kib" -lt 65536 ] || { echo "more than 64 MiB" >&2; return 1; }
}

# Programs through wrappers: only they see the libraries that came along, not Python or the toolkit's tools, which have
# newer ones. Ranks copy through shared memory, for some containers forbid them to read each other's.
use_prebuilt() {
    local packed=$work/packed file
    bin=$work/bin
    mkdir -p "$bin" "$packed" && tar -C "$packed" -xzf "$1/pack.tar.gz" || return 1
    for file in "$packed"/bin/*; do
        printf '#!/bin/sh\nLD_LIBRARY_PATH="%s${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" exec "%s" "$@"\n' "$packed/lib" "$file" \
            > "$bin/${file##*/}" || return 1
    done
    chmod +x "$bin"/* || return 1
    export PATH=$bin:$PATH OPAL_PREFIX=$packed OMPI_MCA_mca_base_component_path=$packed/lib/plugins
    export PMIX_MCA_mca_base_component_path=$packed/lib/pmix OMPI_MCA_btl_vader_single_copy_mechanism=none
}

# NCCL and cuBLASLt where the loader does not look but a Python package has them.
find_libraries() {
    local packages name file
    packages=$("${PYTHON:-python3}" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' 2>/dev/null) || return 0
    for name in libnccl.so.2 libcublasLt.so.13 libcublasLt.so.12; do
        ! ldconfig -p | grep -qF "$name" || continue
        file=$(ls "$packages"/nvidia/*/lib/$name 2>/dev/null | head -n 1)
        [ -z "$file" ] || ln -sf "$file" "$work/found/$name" || return 1
    done
    export LD_LIBRARY_PATH=$work/found${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
}

# The tree's commit, whether it was changed since, and a digest of the sources, which is there without .git too.
source_state() {
    local commit=unknown dirty="" digest
    digest=$(find CMakeLists.txt core cuda mpi datasets launch bench tests -type f \( -name '*.[ch]' -o -name '*.cu' -o -name '*.cuh' \
        -o -name '*.cpp' -o -name '*.cmake' -o -name CMakeLists.txt \) -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum | cut -c 1-16)
    if commit=$(git rev-parse --short=12 HEAD 2>/dev/null); then
        [ -z "$(git status --porcelain 2>/dev/null)" ] || dirty=", with changes that are not committed"
    else
        commit="unknown (no .git here)"
    fi
    echo "commit $commit$dirty; sources $digest"
}

packed_state() {
    local packed here
    packed=$(cat "$work/packed/state" 2>/dev/null) || { echo "of unknown sources: their pack does not name them"; return; }
    here=$(source_state)
    if [ "${packed##*; }" = "${here##*; }" ]; then
        echo "$packed, the tree's"
    else
        echo "$packed, NOT THE TREE'S"
    fi
}
