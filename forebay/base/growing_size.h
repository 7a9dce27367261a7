// A size in bytes that may grow while others look at it. Copies and converts as the number it is.
//
// Thread-safety: any number of readers, one writer at a time. It orders nothing: who counts on a
// size has been told of it by somebody who had set it before.
#pragma once

#include <atomic>
#include <cstdint>

namespace forebay {

class growing_size {
 public:
  // NOLINTNEXTLINE(google-explicit-constructor): a number stands for itself
  growing_size(std::uint64_t bytes = 0) noexcept : bytes_(bytes) {}
  growing_size(const growing_size& o) noexcept : bytes_(o.get()) {}
  growing_size& operator=(const growing_size& o) noexcept { return *this = o.get(); }
  growing_size& operator=(std::uint64_t bytes) noexcept {
    bytes_.store(bytes, std::memory_order_relaxed);  // relaxed: see above
    return *this;
  }
  ~growing_size() = default;

  std::uint64_t get() const noexcept {
    return bytes_.load(std::memory_order_relaxed);  // relaxed: see above
  }
  // NOLINTNEXTLINE(google-explicit-constructor): as above
  operator std::uint64_t() const noexcept { return get(); }

 private:
  std::atomic<std::uint64_t> bytes_;
};

}  // namespace forebay
