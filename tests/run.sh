#!/usr/bin/env bash
# Installs what is missing, builds, and runs every test that this machine can run; says what it skipped and why.
# The last line counts: N passed, N failed, N skipped.   --quick: the host tests only, without sanitizers and CUDA.
set -uo pipefail
cd "$(dirname "$0")/.."
source cmake/setup.sh

quick=no
case "${1:-}" in
  "") ;;
  --quick) quick=yes ;;
  *) echo "usage: tests/run.sh [--quick]" >&2; exit 2 ;;
esac

passed=0 failed=0 skipped=0
notes=()
skip() { notes+=("skipped: $1"); }
count() { passed=$((passed + $1)) failed=$((failed + $2)) skipped=$((skipped + $3)); }

# suite <preset> [CMake settings]: configure, build, test; a build that breaks counts as one failure and does not hide the other suites.
suite() {
  local preset=$1 started=$SECONDS
  shift
  local log="build/$preset.log" report="$PWD/build/$preset.xml"
  echo "== $preset"
  mkdir -p build
  rm -f "$report"
  cmake --preset "$preset" "$@" >"$log" 2>&1 && cmake --build --preset "$preset" -- -k 0 >>"$log" 2>&1
  if [ $? -ne 0 ]; then
    grep -E -A 12 'error|FAILED|CMake Error' "$log" | head -n 80
    notes+=("failed: the build of preset $preset (build/$preset.log)")
    count 0 1 0
  fi
  ctest --preset "$preset" -j "$(nproc)" --output-junit "$report" | grep -vE '^ +Start|^Test project|sec\*proc'
  if [ -f "$report" ]; then
    local attribute=() name
    for name in tests failures skipped disabled; do
      attribute+=("$(grep -oE "\b$name=\"[0-9]+\"" "$report" | head -n 1 | grep -oE '[0-9]+')")
    done
    local not_run=$((attribute[2] + attribute[3]))
    count $((attribute[0] - attribute[1] - not_run)) "${attribute[1]}" "$not_run"
  fi
  echo "   $((SECONDS - started)) s"
}

# script <name> <command>...: a test that is a program of its own.
script() {
  local name=$1 started=$SECONDS
  shift
  echo "== $name"
  if "$@"; then
    count 1 0 0
  else
    notes+=("failed: $name")
    count 0 1 0
  fi
  echo "   $((SECONDS - started)) s"
}

install_missing "${build_tools[@]}" "${engine_libraries[@]}" doctest-dev libbenchmark-dev || exit 1

if [ $quick = yes ]; then
  suite cpu
  skip "sanitizers and CUDA: --quick"
else
  if has_nvcc; then
    if has_gpu; then
      suite cuda
    else
      suite cuda -DPAGEDKV_TEST_ARCHITECTURES=90a
      skip "the tests labelled gpu: this machine has no NVIDIA GPU (they were compiled, for sm_90a)"
    fi
  else
    suite cpu
    skip "everything that needs CUDA: this machine has no nvcc"
  fi
  suite asan
  suite tsan
  part=$((10#$(date +%j) % 36 + 1))  # every planted bug has its turn within thirty-six days
  script "planted bugs, part $part of 36" tests/planted_bugs.sh --part "$part/36"
fi

[ ${#notes[@]} -gt 0 ] && printf '%s\n' "${notes[@]}"
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed -eq 0 ] && [ $passed -gt 0 ]
