#!/usr/bin/env bash
# The memory layer under valgrind: no restartable sequences there, so everything goes the other way,
# and the checker knows which objects are free.
set -euo pipefail

command -v valgrind >/dev/null || { echo "valgrind is not installed"; exit 77; }
test=$FOREBAY_BUILD/forebay_memory_test

# Without what forks, races or takes long: valgrind runs one thread at a time, twenty times slower.
filter='CpuCache.*:Kinds/CpuCache.*:ObjectCache.*:Slab.*:GeneralCache.*:BufferPool.*:Registry.*'
filter+=':Arena.*:Buddy.*:-*Stress*:*Death*:*Random*:*Model*'

valgrind --quiet --error-exitcode=9 --leak-check=full --errors-for-leak-kinds=definite \
  --num-callers=20 "$test" --gtest_brief=1 --gtest_filter="$filter" >valgrind_memory.log 2>&1 ||
  { status=$?; tail -n 60 valgrind_memory.log; exit "$status"; }
tail -n 2 valgrind_memory.log
grep -q 'PASSED' valgrind_memory.log
