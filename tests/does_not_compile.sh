#!/bin/sh
# ctest: timeout=120 labels=unit
# Misuse that the types of forebay/dma show does not compile: tests/does_not_compile.cc says of each line which error it
# must be, and Clang's -verify finds an error that is missing as well as one that is too many.
set -eu

compiler=clang++-19
command -v "$compiler" >/dev/null || { echo "no $compiler"; exit 77; }
source=${FOREBAY_SOURCE:-$(dirname "$0")/..}

exec "$compiler" -std=c++23 -Wall -Wextra -Werror -I"$source" -I"${FOREBAY_BUILD:-$source/build}/generated" \
  -fsyntax-only -ferror-limit=0 \
  -Xclang -verify -Xclang -verify-ignore-unexpected=note "$source/tests/does_not_compile.cc"
