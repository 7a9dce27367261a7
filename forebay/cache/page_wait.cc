#include "forebay/cache/page_wait.h"

#include <array>

namespace forebay {
namespace {

constexpr std::size_t bucket_count = 256;

std::array<wait_queue, bucket_count>& buckets() noexcept {
  static std::array<wait_queue, bucket_count> instance;
  return instance;
}

}  // namespace

wait_queue& page_wait_queue(const page& p) noexcept {
  const auto address = reinterpret_cast<std::uintptr_t>(&p) / sizeof(page);
  return buckets()[(address ^ (address >> 8)) % bucket_count];
}

}  // namespace forebay
