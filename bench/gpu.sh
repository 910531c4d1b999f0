#!/usr/bin/env bash
# The GPU suite from a bare clone: bench/gpu.sh [build|test|kernels|model|bench|all] [arguments of bench_gpu.py]
#
# all: everything, in ten minutes: build one (16 cores), tests at most three, benches five and a half, each part with
# its own share (bench_gpu.py, SECONDS), of which unfinished cases are skipped by name. kernels and model are the halves
# of bench. Exits with 1 if a test or a case of ours failed. Without a GPU everything is skipped, with the reason;
# --dry-run runs the benches at toy sizes on the CPU. The short table comes last; JSON goes to bench/results/.
#
# Needs a C++17 compiler and a Python (PYTHON, default python3) with torch for CUDA, triton and transformers; the tests
# also need pytest and hypothesis. Fetches and installs nothing: the native core is compiled with the pybind11 headers
# that torch brings, into build/gpu, which is put on PYTHONPATH.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
what=${1:-all}
[[ $what != --* ]] || what=all  # options alone
[[ $# -eq 0 || $1 == --* ]] || shift
root=$PWD/build/gpu

knows() {  # whether the compiler takes a flag and the machine has such instructions at all
    [ "$(uname -m)" = x86_64 ] && "${CXX:-g++}" "$1" -x c++ -fsyntax-only /dev/null 2>/dev/null
}

build() {
    if [ -e "$root/built" ] && [ -z "$(find csrc wcse kernels -maxdepth 1 -newer "$root/built")$(find csrc -newer "$root/built")" ]; then
        return
    fi
    rm -rf "$root"
    mkdir -p "$root/objects" "$root/wcse"
    ln -sfn ../../../kernels "$root/wcse/kernels"
    for part in wcse/*; do ln -sfn "../../../$part" "$root/$part"; done
    local include flags=(-std=c++17 -O3 -fPIC -fvisibility=hidden -ffp-contract=off -Icsrc)
    include=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
    flags+=("-I$include" "-I$("$python" -c 'import torch, os; print(os.path.dirname(torch.__file__))')/include")
    [ "$(uname -m)" != x86_64 ] || flags+=(-DWCSE_X86)
    local avx2="-mavx2 -mfma -mf16c"
    local avx512="-mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mprefer-vector-width=512"
    if knows -mavxvnni; then flags+=(-DWCSE_AVX_VNNI); fi
    if knows -mavx512vnni; then flags+=(-DWCSE_AVX512_VNNI); fi
    local source object extra jobs=()
    for source in csrc/*.cpp csrc/cpu/*.cpp csrc/tests/bind_testing.cpp csrc/tests/kv_tree_fuzz.cpp; do
        extra=
        case $source in  # as in CMakeLists.txt
        *avx2.cpp) extra=$avx2 ;;
        *avx512.cpp) extra=$avx512 ;;
        *avx_vnni.cpp) extra="$avx2 -mavxvnni" ;;
        *avx512_vnni.cpp) extra="$avx512 -mavx512vnni" ;;
        esac
        if [ -n "$extra" ] && ! knows "${extra##* }"; then continue; fi
        object=$root/objects/$(echo "$source" | tr / _).o
        jobs+=("${CXX:-g++} ${flags[*]} $extra -c $source -o $object")
    done
    printf '%s\n' "${jobs[@]}" | xargs -P "$(nproc)" -I{} sh -c '{}'
    "${CXX:-g++}" -shared -pthread "$root"/objects/*.o -o "$root/wcse/_core$("$python" -c \
        'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')"
    touch "$root/built"
}

run_tests() {
    if ! "$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())'; then
        echo "gpu.sh: torch finds no CUDA device: the GPU tests are skipped (make test interprets the kernels)"
    elif ! "$python" -c 'import pytest, hypothesis'; then
        echo "gpu.sh: pytest or hypothesis is missing: the tests are skipped; the benches check what they time"
    else
        local many=()  # most of the time is the compilation of kernels, one a process
        if "$python" -c 'import xdist' 2>/dev/null; then many=(-n 8); fi
        if ! timeout 180 "$python" -m pytest -q "${many[@]}" tests/kernels -k "triton and not static"; then
            echo "gpu.sh: GPU tests failed, or took over three minutes; see above" >&2
            status=1
        fi
    fi
}

if ! "$python" -c 'import sys, torch, triton, transformers
print(f"gpu.sh: Python {sys.version.split()[0]}, torch {torch.__version__}, triton {triton.__version__}")'; then
    echo "gpu.sh: PYTHON=$python lacks what the last line above names; set PYTHON to one with torch, triton, transformers" >&2
    exit 2
fi
status=0
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
build
case $what in
build) ;;
test) run_tests ;;
bench) "$python" bench/bench_gpu.py "$@" ;;
kernels) "$python" bench/bench_gpu.py --parts rates attention extend rows sample score plan "$@" ;;
model) "$python" bench/bench_gpu.py --parts rates decode generate prm "$@" ;;
all)
    run_tests
    "$python" bench/bench_gpu.py --budget 330 "$@" || status=1
    ;;
*)
    echo "gpu.sh: unknown part '$what'; use build, test, kernels, model, bench or all" >&2
    exit 2
    ;;
esac
exit "$status"
