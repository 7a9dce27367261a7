// A device in memory: for tests, for sizing, and for exports that need not survive.
#pragma once

#include <cstddef>
#include <span>

#include "forebay/block/device.h"
#include "forebay/os/memory.h"
#include "forebay/os/mutex.h"

namespace forebay {

class memory_device final : public device {
 public:
  // Zeroed; takes memory for what has been touched. `size_bytes` is a multiple of
  // `logical_block_bytes`. Throws std::bad_alloc where there is no room for so many.
  explicit memory_device(std::uint64_t size_bytes, std::uint32_t logical_block_bytes = 512);

  const device_limits& limits() const noexcept override { return limits_; }
  void submit(bio& b) noexcept override;

  // What is stored; only while no bio is in flight.
  std::span<std::byte> contents() noexcept { return memory_.part(0, limits_.size_bytes); }

 private:
  device_limits limits_;
  mutex lock_;  // makes a bio atomic against another
  memory_mapping memory_;
};

}  // namespace forebay
