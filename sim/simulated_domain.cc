#include "sim/simulated_domain.h"

#include <algorithm>
#include <cstring>

#include "forebay/base/assert.h"

namespace forebay {

template <typename Copy>
result<> simulated_domain::transfer(dma_address address, std::size_t bytes, dma_direction access,
                                    Copy copy) noexcept {
  const scoped_lock held(lock_);
  for (std::size_t done = 0; done < bytes;) {
    const auto memory = reach(address + done, access);
    if (!memory) {
      if (faults_ < max_recorded) recorded_[faults_] = {address + done, access, memory.error()};
      ++faults_;
      return fail(EFAULT);
    }
    FOREBAY_ASSERT(!memory->empty());
    const std::size_t n = std::min(memory->size(), bytes - done);
    copy(memory->first(n), done);
    done += n;
  }
  return {};
}

result<> simulated_domain::device_read(dma_address address, std::span<std::byte> out) noexcept {
  return transfer(address, out.size(), dma_direction::to_device,
                  [&](std::span<const std::byte> memory, std::size_t done) noexcept {
                    std::memcpy(out.data() + done, memory.data(), memory.size());
                  });
}

result<> simulated_domain::device_write(dma_address address,
                                        std::span<const std::byte> data) noexcept {
  return transfer(address, data.size(), dma_direction::from_device,
                  [&](std::span<std::byte> memory, std::size_t done) noexcept {
                    std::memcpy(memory.data(), data.data() + done, memory.size());
                  });
}

result<> simulated_domain::device_check(dma_address address, std::size_t bytes,
                                        dma_direction access) noexcept {
  return transfer(address, bytes, access, [](std::span<std::byte>, std::size_t) noexcept {});
}

std::uint64_t simulated_domain::faults() const noexcept {
  const scoped_lock held(lock_);
  return faults_;
}

dma_fault simulated_domain::fault(std::size_t number) const noexcept {
  const scoped_lock held(lock_);
  FOREBAY_ASSERT(number < std::min<std::uint64_t>(faults_, max_recorded));
  return recorded_[number];
}

}  // namespace forebay
