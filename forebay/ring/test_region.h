// Memory for a ring whose two sides are in one process.
#pragma once

#include <cstddef>
#include <cstring>
#include <memory>
#include <new>
#include <span>

#include "forebay/ring/shared_region.h"

namespace forebay {

class test_region {
 public:
  explicit test_region(std::size_t bytes)
      : memory_(static_cast<std::byte*>(
            ::operator new(bytes, std::align_val_t{shared_region_alignment}))),
        bytes_(bytes) {
    std::memset(memory_.get(), 0, bytes);
  }

  // NOLINTNEXTLINE(google-explicit-constructor): it stands for its memory
  operator std::span<std::byte>() const noexcept { return {memory_.get(), bytes_}; }
  std::span<std::byte> memory() const noexcept { return *this; }

 private:
  struct deleter {
    void operator()(std::byte* p) const noexcept {
      ::operator delete(p, std::align_val_t{shared_region_alignment});
    }
  };
  std::unique_ptr<std::byte, deleter> memory_;
  std::size_t bytes_;
};

// A waiter that never sleeps: every wait is over at once, and its clock moves by one with each
// look. Tests that use it look at what a side does, not at when.
struct test_waiter {
  template <typename Word>
  void wait(Word&, std::uint32_t, std::uint64_t) noexcept {
    ++*waits;
  }
  template <typename Word>
  void wake(Word&) noexcept {
    ++*wakes;
  }
  bool gone() const noexcept { return peer_gone != nullptr && *peer_gone; }
  std::uint64_t now_ns() noexcept { return ++*now; }
  static unsigned spins() noexcept { return 0; }
  static void relax() noexcept {}

  std::shared_ptr<unsigned> waits = std::make_shared<unsigned>(0);
  std::shared_ptr<unsigned> wakes = std::make_shared<unsigned>(0);
  std::shared_ptr<std::uint64_t> now = std::make_shared<std::uint64_t>(0);
  std::shared_ptr<bool> peer_gone;
};

}  // namespace forebay
