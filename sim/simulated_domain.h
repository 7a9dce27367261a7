// The domain of a simulated device, and the device's own way to memory: what it does outside its
// mappings is a fault, an error value that is counted and recorded.
//
// Any thread; lock_ guards what the derived domain knows, and the faults. Memory is copied under
// it.
#pragma once

#include <array>
#include <cstdint>
#include <expected>
#include <span>
#include <string>

#include "forebay/dma/domain.h"
#include "forebay/os/mutex.h"

namespace forebay {

enum class dma_fault_reason : std::uint8_t {
  not_mapped,
  not_permitted,  // mapped for the other direction only
};

struct dma_fault {
  dma_address address{};                            // the first byte that was refused
  dma_direction access = dma_direction::to_device;  // to_device: a read by the device
  dma_fault_reason reason = dma_fault_reason::not_mapped;

  friend bool operator==(const dma_fault&, const dma_fault&) = default;
};

class simulated_domain : public dma_domain {
 public:
  static constexpr std::size_t max_recorded = 16;

  // The device reads or writes memory from `address` on. EFAULT, and a fault, when it comes to a
  // byte that it must not; the bytes before have been transferred then.
  [[nodiscard]] result<> device_read(dma_address address, std::span<std::byte> out) noexcept;
  [[nodiscard]] result<> device_write(dma_address address,
                                      std::span<const std::byte> data) noexcept;
  // Whether all of it can be read (to_device) or written from `address` on: what a device asks that
  // writes all or nothing. The same error and fault.
  [[nodiscard]] result<> device_check(dma_address address, std::size_t bytes,
                                      dma_direction access) noexcept;

  // Since the start, and the first max_recorded of them.
  std::uint64_t faults() const noexcept;
  dma_fault fault(std::size_t number) const noexcept;

 protected:
  using dma_domain::dma_domain;

  // Memory from `address` on, some bytes at least, that the device may access in this way.
  virtual std::expected<std::span<std::byte>, dma_fault_reason> reach(dma_address address,
                                                                      dma_direction access) noexcept
      FOREBAY_REQUIRES(lock_) = 0;

  mutable mutex lock_;

 private:
  template <typename Copy>
  result<> transfer(dma_address address, std::size_t bytes, dma_direction access,
                    Copy copy) noexcept;

  std::uint64_t faults_ FOREBAY_GUARDED_BY(lock_) = 0;
  std::array<dma_fault, max_recorded> recorded_ FOREBAY_GUARDED_BY(lock_){};
};

}  // namespace forebay
