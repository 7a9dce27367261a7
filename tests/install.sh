#!/usr/bin/env bash
# Installs into an empty prefix and uses the result as a stranger would: headers, CMake package, pkg-config file,
# program, manual pages.
set -euo pipefail

source=${FOREBAY_SOURCE:?} build=${FOREBAY_BUILD:?}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
prefix=$scratch/prefix

fail() {
  echo "install: $*" >&2
  exit 1
}

cmake --install "$build" --prefix "$prefix" >"$scratch/install.log" || { cat "$scratch/install.log"; exit 1; }

# Every public header, and no test's.
(cd "$source" && find forebay -name '*.h' ! -name '*_test.h' ! -name 'test_*.h' | sort) >"$scratch/wanted"
(cd "$prefix/include" && find forebay -name '*.h' ! -path forebay/base/version.h | sort) >"$scratch/there"
diff "$scratch/wanted" "$scratch/there" || fail "the headers installed are not the library's public headers"

# As a CMake package, from a moved prefix: nothing may remember where it was installed first.
mv "$prefix" "$scratch/moved"
prefix=$scratch/moved
cmake -S "$source/tests/package" -B "$scratch/cmake" -G Ninja -DCMAKE_PREFIX_PATH="$prefix" \
  -DCMAKE_CXX_FLAGS="-Wall -Wextra -Werror" >"$scratch/cmake.log" 2>&1 || { cat "$scratch/cmake.log"; exit 1; }
cmake --build "$scratch/cmake"
"$scratch/cmake/user" | tee "$scratch/said"
version=$(sed -n 's/^forebay //p' "$scratch/said")

# Through pkg-config. All of the library is linked, so a library that forebay.pc forgets is an undefined symbol.
PKG_CONFIG_PATH=$(dirname "$(find "$prefix" -name forebay.pc)")
export PKG_CONFIG_PATH
[[ $(pkg-config --modversion forebay) == "$version" ]] || fail "forebay.pc and version.h differ in version"
read -r -a cflags <<<"$(pkg-config --cflags forebay)"
for static in "" --static; do
  read -r -a libs <<<"$(pkg-config $static --libs forebay)"
  "${CXX:-g++}" -std=c++23 "${cflags[@]}" "$source/tests/package/main.cc" -o "$scratch/user" \
    -Wl,--push-state,--whole-archive "$(find "$prefix" -name libforebay.a)" -Wl,--pop-state "${libs[@]}"
  "$scratch/user"
done

# The engine of docs/embedding.md, as the page says.
cmake -S "$source/examples" -B "$scratch/examples" -G Ninja -DCMAKE_PREFIX_PATH="$prefix" >"$scratch/examples.log" 2>&1 ||
  { cat "$scratch/examples.log"; exit 1; }
cmake --build "$scratch/examples" --target key_value
truncate -s 1M "$scratch/table.db"
"$scratch/examples/key_value" "$scratch/table.db" weir "holds water back"
[[ $("$scratch/examples/key_value" "$scratch/table.db" weir) == "holds water back" ]] || fail "key_value forgets"

if [[ -e $source/tools/forebay ]]; then
  "$prefix/bin/forebay" --version | grep -qF "$version" || fail "forebay --version does not say $version"
fi
for page in "$source"/docs/man/*.1; do
  [[ ! -e $page ]] || [[ -e $prefix/share/man/man1/${page##*/} ]] || fail "${page##*/} is not installed"
done
echo "install: as it should be"
