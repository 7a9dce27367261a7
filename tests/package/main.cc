// A user's program: takes an arena, holds a frame, gives it back. Exit status 0 if that went as
// documented.
#include <cstdio>
#include <cstring>

#include "forebay/base/result.h"
#include "forebay/base/version.h"
#include "forebay/memory/arena.h"

int main() {
  forebay::result<int> failed = forebay::fail(forebay::errc::too_small);
  if (failed || failed.error() != forebay::errc::too_small) return 1;

  auto arena = forebay::arena::create({.bytes = 4u << 20, .huge_pages = false});
  if (!arena) return 2;
  const auto free_before = (*arena)->free_pages();
  forebay::page* page = (*arena)->allocate();
  if (page == nullptr || (*arena)->free_pages() != free_before - 1) return 3;
  std::memset((*arena)->address_of(*page), 0x5a, 4096);
  forebay::put_page(*page);
  if ((*arena)->free_pages() != free_before) return 4;

  std::printf("forebay %.*s\n", static_cast<int>(forebay::version.size()), forebay::version.data());
  return 0;
}
