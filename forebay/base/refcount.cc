#include "forebay/base/refcount.h"

#include <array>
#include <cstdio>

namespace forebay {
namespace {

constexpr std::array<const char*, refcount_misuse_kinds> kind_names = {
    "add-not-zero overflow", "add overflow", "add use-after-free", "sub use-after-free",
    "dec leak"};

constexpr std::array<const char*, refcount_misuse_kinds> kind_meanings = {
    "a lookup took a reference past the maximum",
    "a holder took a reference past the maximum",
    "a reference was taken from an object that has no holder",
    "a reference was given back that nobody held",
    "the last reference was given back by who was sure that it is not the last",
};

std::array<std::atomic<std::uint64_t>, refcount_misuse_kinds> misuses{};

std::size_t index_of(refcount_misuse kind) noexcept { return static_cast<std::size_t>(kind); }

}  // namespace

const char* to_string(refcount_misuse kind) noexcept { return kind_names[index_of(kind)]; }

std::uint64_t refcount_misuses(refcount_misuse kind) noexcept {
  // relaxed: a statistic, it orders nothing.
  return misuses[index_of(kind)].load(std::memory_order_relaxed);
}

std::uint64_t refcount_misuses() noexcept {
  std::uint64_t sum = 0;
  for (const auto& m : misuses) sum += m.load(std::memory_order_relaxed);  // relaxed: a statistic
  return sum;
}

namespace detail {

void refcount_misused(refcount_misuse kind, const void* where, std::uint32_t value) noexcept {
  // relaxed: only the number matters. One report of each kind is enough to look for the fault; a
  // loop of them would drown it.
  if (misuses[index_of(kind)].fetch_add(1, std::memory_order_relaxed) != 0) return;
  std::fprintf(stderr,
               "forebay: refcount %p: %s: %s (count was %u); saturated, the object is leaked\n",
               where, to_string(kind), kind_meanings[index_of(kind)], value);
}

}  // namespace detail
}  // namespace forebay
