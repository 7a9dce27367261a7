// The address space that one device sees, and who owns the memory in it.
//
//      cpu_owned --- map(direction) ---> device_owned        the device reads or writes by a
//          ^                                  |              dma_address; the CPU keeps away
//          |                     sync_for_cpu |  ^
//          +---------- unmap ---------+       v  | sync_for_device
//                                           a range is the CPU's for a while
//
// All memory that a device is to reach is mapped into the device's domain first, for one transfer
// or for as long as it stays with the device. A mapping can fail: the device may have no more
// translations, or must have memory registered that is not. What map() gives is an address of the
// device's, which need not be the CPU's. These functions are the raw ones, as the kernel's
// dma_map_single(); ownership.h has types over them with which mistakes do not compile.
//
// Ordering: between map() or sync_for_device() and the device's looking lies a doorbell, between
// the device's end and unmap() or sync_for_cpu() a completion, both of which order memory.
//
// Several pieces at once: sg_segments.h.
//
// Guards: a domain says itself which threads may call it; those here that have no other comment
// allow any thread.
#pragma once

#include <source_location>
#include <span>
#include <string>
#include <string_view>

#include "forebay/base/result.h"
#include "forebay/dma/segment.h"

namespace forebay {

class dma_domain {
 public:
  dma_domain(const dma_domain&) = delete;
  dma_domain& operator=(const dma_domain&) = delete;
  virtual ~dma_domain() = default;

  std::string_view name() const noexcept { return name_; }
  const dma_limits& limits() const noexcept { return limits_; }

  // Gives `memory` to the device, to be used in direction `d`, under the address in the result. The
  // memory must stay until unmap(). Errors, nothing is mapped then: EINVAL for no bytes,
  // errc::too_large for more than one segment can have, across the domain's boundary, or in two
  // places of the device's; EFAULT for memory that the device cannot reach, ENOSPC when there is no
  // room for another translation, ENOMEM.
  [[nodiscard]] result<dma_segment> map(
      std::span<std::byte> memory, dma_direction d,
      std::source_location where = std::source_location::current()) noexcept {
    static_cast<void>(where);
    if (memory.empty()) return fail(EINVAL);
    if (memory.size() > limits_.max_segment_bytes) return fail(errc::too_large);
    const result<dma_segment> s = do_map(memory, d);
    if (s && (s->length != memory.size() || !keeps_to(*s, limits_))) [[unlikely]] {
      do_unmap(*s, d);
      return fail(errc::too_large);
    }
    return s;
  }

  // Takes it back: exactly what map() gave, with its direction. The device must have ended.
  void unmap(const dma_segment& s, dma_direction d) noexcept { do_unmap(s, d); }

  // Lends a part of a mapping to the CPU, and gives it back to the device.
  void sync_for_cpu(const dma_segment& s, std::uint32_t offset, std::uint32_t length,
                    dma_direction d) noexcept {
    do_sync_for_cpu(s, offset, length, d);
  }
  void sync_for_device(const dma_segment& s, std::uint32_t offset, std::uint32_t length,
                       dma_direction d) noexcept {
    do_sync_for_device(s, offset, length, d);
  }

 protected:
  static constexpr std::size_t max_mapping_bytes = std::size_t{1} << 31;

  dma_domain(std::string name, const dma_limits& limits) noexcept
      : name_(std::move(name)), limits_(limits) {}

  // The limits are not do_map()'s concern: who calls it splits what it gives, or undoes it.
  // `memory` has 1 to max_mapping_bytes bytes. A domain in which they are not contiguous maps the
  // first part that is, and says so by the segment's length; what follows it in the memory then has
  // another region, or not the next address. do_unmap() gets exactly the segments that do_map()
  // gave, each once, in any order.
  virtual result<dma_segment> do_map(std::span<std::byte> memory, dma_direction d) noexcept = 0;
  virtual void do_unmap(const dma_segment& s, dma_direction d) noexcept = 0;
  // Where CPU and device see the same memory, as on all of today's hardware that is cache coherent,
  // there is nothing to do.
  virtual void do_sync_for_cpu(const dma_segment&, std::uint32_t, std::uint32_t,
                               dma_direction) noexcept {}
  virtual void do_sync_for_device(const dma_segment&, std::uint32_t, std::uint32_t,
                                  dma_direction) noexcept {}

 private:
  friend class segment_mapper;  // sg_segments.cc

  const std::string name_;
  const dma_limits limits_;
};

}  // namespace forebay
