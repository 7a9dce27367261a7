#include "sim/explorer/trace.h"

#include <cstring>

#include <fmt/format.h>

namespace forebay::explorer {
namespace {

// Which thread made the store of this name; the constructor's stores have none.
std::string maker_of(std::uint64_t name) {
  const std::uint64_t thread = (name >> 32) - 1;
  return thread < 16 ? fmt::format("{}.{}", thread, name & 0xffff'ffff) : std::string("initial");
}

std::string text_of(const trace_line& l) {
  std::string s = fmt::format("  thread {}: {:<11} {:<8}", l.thread, l.what, l.order);
  if (l.location != UINT32_MAX) s += fmt::format(" location {:<3} {:#x}", l.location, l.value);
  if (l.from != 0 && l.named != 0) s += fmt::format(" -> {:#x}", l.other);
  if (l.from != 0) s += fmt::format(" of {}", maker_of(l.from));
  if (l.named != 0) s += fmt::format(" as {}", maker_of(l.named));
  if (l.old) s += l.named != 0 ? ", before a store that is there" : ", and there is a newer one";
  if (l.line != 0) {
    const char* const name = std::strrchr(l.file, '/');
    s += fmt::format("   ({}:{})", name == nullptr ? l.file : name + 1, l.line);
  }
  return s + "\n";
}

}  // namespace

std::string trace::text() const {
  std::string s;
  for (const trace_line& l : lines_) s += text_of(l);
  return s;
}

}  // namespace forebay::explorer
