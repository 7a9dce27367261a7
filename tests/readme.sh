#!/usr/bin/env bash
# ctest: timeout=600 labels=integration processors=2
# Runs the commands of README.md as written, in a clean copy of the tree.
#
# Fenced blocks of README.md:
#   ```sh test           run by bash -euo pipefail, in the copy's top directory; must succeed
#   ```sh test server    started in the background; the test goes on when ./forebay.sock is there; interrupted (as by
#                        Ctrl-C) at the end, and must then leave within 30 s
# All other blocks are left alone.
#
# Where a mount namespace may be had, the copy is mounted in the tree's own place together with a copy of its release
# build, so that `make` finds everything built, as a user does the second time; otherwise the copy is built anew.
set -euo pipefail

source=${FOREBAY_SOURCE:?}
[[ -e $source/README.md ]] || { echo "readme: no README.md"; exit 77; }

if [[ -z ${README_SCRATCH:-} ]]; then
  scratch=$(mktemp -d "${FOREBAY_SCRATCH:-/var/tmp}/forebay-readme.XXXXXX")
  trap 'rm -rf "$scratch"' EXIT

  # What git would give a new user, with the changes at hand; without git, everything but build products.
  tree=$scratch/forebay
  mkdir "$tree"
  cd "$source"
  if git rev-parse --git-dir >/dev/null 2>&1; then
    git ls-files -z --cached --others --exclude-standard | while IFS= read -r -d '' file; do
      [[ ! -e $file ]] || printf '%s\0' "$file"
    done | tar -c --null -T - | tar -x -C "$tree"
  else
    tar -c --exclude=./build --exclude=./.git --exclude=./demo.img . | tar -x -C "$tree"
  fi

  unshare=()
  for options in -m -rm; do
    if [[ ${FOREBAY_BUILD:-} == "$source/build/release" ]] &&
      unshare "$options" mount --bind "$tree" "$source" 2>/dev/null; then
      unshare=(unshare "$options")
      mkdir "$tree/build"
      cp -a "$source/build/release" "$tree/build/release"
      break
    fi
  done
  echo "readme: in $([[ ${#unshare[@]} != 0 ]] && echo "a mount namespace" || echo "a fresh copy")"
  README_SCRATCH=$scratch "${unshare[@]}" "$0" && exit
  exit 1
fi

scratch=$README_SCRATCH
server=
trap '[[ -z $server ]] || kill -KILL -- "-$server" 2>/dev/null || true' EXIT
cd "$scratch/forebay"
if [[ -d build ]]; then
  mount --bind "$PWD" "$source"
  cd "$source"
fi

awk -v scratch="$scratch" '
  !inside && /^```sh test( server)?[ \t]*$/ {
    inside = 1
    name = sprintf("%s/block%03d%s", scratch, ++count, /server/ ? ".server" : ".sh")
    printf "" > name
    next
  }
  inside && /^```/ { inside = 0; close(name); next }
  inside { print > name }
  END { if (inside) { print "readme: a block is not closed" > "/dev/stderr"; exit 1 } }
' README.md

shopt -s nullglob
blocks=("$scratch"/block*)
((${#blocks[@]})) || { echo "readme: README.md has no block marked for this test" >&2; exit 1; }

set -m # the server gets a process group of its own, which is what Ctrl-C reaches
for block in "${blocks[@]}"; do
  echo "--- ${block##*/}"
  cat "$block"
  if [[ $block == *.server ]]; then
    [[ -z $server ]] || { echo "readme: a second server" >&2; exit 1; }
    bash -euo pipefail "$block" >"$scratch/server.log" 2>&1 &
    server=$!
    for ((tenths = 0; tenths < 4000; tenths++)); do
      [[ ! -S forebay.sock ]] || break
      kill -0 "$server" 2>/dev/null || { cat "$scratch/server.log"; echo "readme: the server left" >&2; exit 1; }
      sleep 0.1
    done
    [[ -S forebay.sock ]] || { cat "$scratch/server.log"; echo "readme: no forebay.sock" >&2; exit 1; }
    cat "$scratch/server.log"
  else
    bash -euo pipefail "$block" </dev/null
  fi
done

if [[ -n $server ]]; then
  kill -INT -- "-$server"
  for ((tenths = 0; tenths < 300; tenths++)); do
    kill -0 -- "-$server" 2>/dev/null || break
    sleep 0.1
  done
  ! kill -0 -- "-$server" 2>/dev/null || { echo "readme: the server does not leave" >&2; exit 1; }
  server=
fi
echo "readme: ${#blocks[@]} blocks ran"
