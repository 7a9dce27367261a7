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
// Checks: what types cannot show, debug.h finds at run time, for the domains that are made with
// checks or named in the environment; see there for what is found. A domain without them pays one
// branch a call.
//
// Guards: a domain says itself which threads may call it; those here that have no other comment
// allow any thread.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>
#include <optional>
#include <ranges>
#include <source_location>
#include <span>
#include <string>
#include <string_view>

#include "forebay/base/result.h"
#include "forebay/dma/segment.h"

namespace forebay {

class dma_debug;

// What happens when a check finds a mistake.
enum class dma_check : std::uint8_t {
  as_environment,  // as FOREBAY_DMA_DEBUG and its companions say (debug.h)
  off,             // no checks
  report,          // a line on standard error, counted, and on
  abort,           // a line on standard error, and the process ends
};

struct dma_check_options {
  dma_check check = dma_check::as_environment;
  // Whether the CPU's stray accesses to the device's memory fault; only with checks, and where
  // memory is guardable. None: as FOREBAY_DMA_GUARD says.
  std::optional<bool> guard = std::nullopt;
  // Segments that can be kept track of at once; with more the checks say so and end.
  std::uint32_t segments_max = 1u << 16;
};

// Which mappings' memory the device reaches when it is protected from this process: because it has
// pins of its own (registered io_uring buffers) or uses a copy. Not so a device that is code in
// this process, nor a system call that is given the processor's address: it would answer EFAULT.
enum class dma_guardable : std::uint8_t {
  none,
  single_in_region,  // those of one segment that has a region
  all,
};

class dma_domain {
 public:
  dma_domain(const dma_domain&) = delete;
  dma_domain& operator=(const dma_domain&) = delete;
  // Nothing should be mapped.
  virtual ~dma_domain();

  std::string_view name() const noexcept { return name_; }
  const dma_limits& limits() const noexcept { return limits_; }

  // ---- Mapping one piece ----

  // Gives `memory` to the device, to be used in direction `d`, under the address in the result. The
  // memory must stay until unmap(). Errors, nothing is mapped then: EINVAL for no bytes,
  // errc::too_large for more than one segment can have, across the domain's boundary, or in two
  // places of the device's; EFAULT for memory that the device cannot reach, ENOSPC when there is no
  // room for another translation, ENOMEM.
  [[nodiscard]] result<dma_segment> map(
      std::span<std::byte> memory, dma_direction d,
      std::source_location where = std::source_location::current()) noexcept {
    if (memory.size() - 1 >= plain_bytes_) [[unlikely]]
      return map_specially(memory, d, false, where);
    return map_plainly(memory, d);
  }

  // Takes it back: exactly what map() gave, with its direction. The device must have ended.
  void unmap(const dma_segment& s, dma_direction d,
             std::source_location where = std::source_location::current()) noexcept {
    if (debug_ != nullptr) [[unlikely]]
      return unmap_checked(s, d, false, where);
    do_unmap(s, d);
  }

  // Lends a part of a mapping to the CPU, and gives it back to the device. `s` is a segment that
  // was mapped, `d` the mapping's direction; what is given back is what was lent.
  void sync_for_cpu(const dma_segment& s, std::uint32_t offset, std::uint32_t length,
                    dma_direction d,
                    std::source_location where = std::source_location::current()) noexcept {
    if (debug_ != nullptr) [[unlikely]]
      return lend_checked(s, offset, length, d, where);
    do_sync_for_cpu(s, offset, length, d);
  }
  void sync_for_device(const dma_segment& s, std::uint32_t offset, std::uint32_t length,
                       dma_direction d,
                       std::source_location where = std::source_location::current()) noexcept {
    if (debug_ != nullptr) [[unlikely]]
      return return_checked(s, offset, length, d, where);
    do_sync_for_device(s, offset, length, d);
  }

  // As map() and unmap(), for memory that the CPU and the device use at the same time, in both
  // directions (coherent_buffer.h).
  [[nodiscard]] result<dma_segment> map_coherent(
      std::span<std::byte> memory,
      std::source_location where = std::source_location::current()) noexcept {
    return map_specially(memory, dma_direction::bidirectional, true, where);
  }
  void unmap_coherent(const dma_segment& s,
                      std::source_location where = std::source_location::current()) noexcept {
    if (debug_ != nullptr) [[unlikely]]
      return unmap_checked(s, dma_direction::bidirectional, true, where);
    do_unmap(s, dma_direction::bidirectional);
  }

  // ---- Checks ----

  // Whether the domain has checks; does not change.
  bool checked() const noexcept { return debug_ != nullptr; }

  // For who maps several pieces as one (sg_segments.h), and only if checked(): the pieces, a range
  // of spans of bytes, are now mapped as these segments, a range as well; as many bytes in both, in
  // the same order. Syncs of the mapping go by its segments, as those of a single one.
  template <std::ranges::forward_range Pieces, std::ranges::forward_range Segments>
  void note_mapped(const Pieces& pieces, const Segments& segments, dma_direction d,
                   std::source_location where = std::source_location::current()) noexcept {
    const copy_of<std::span<std::byte>> p(pieces);
    const copy_of<dma_segment> s(segments);
    list_mapped(p.all, p.made && s.made, s.all, d, where);
  }
  // And that all of it is about to be unmapped. False if it must not be, because it is not what was
  // mapped.
  template <std::ranges::forward_range Segments>
  [[nodiscard]] bool note_unmap(
      const Segments& segments, dma_direction d,
      std::source_location where = std::source_location::current()) noexcept {
    const copy_of<dma_segment> s(segments);
    return list_unmapped(s.all, s.made, d, where);
  }

  // For who is about to use a descriptor on the device's behalf: that the device may now read
  // (to_device) or write (from_device) these bytes of `s`, a mapped segment or a part of one.
  void check_access(const dma_segment& s, std::uint32_t offset, std::uint32_t length,
                    dma_direction access,
                    std::source_location where = std::source_location::current()) const noexcept {
    if (debug_ != nullptr) [[unlikely]]
      access_checked(s, offset, length, access, where);
  }

  // Null without checks.
  dma_debug* debug() const noexcept { return debug_.get(); }

 protected:
  dma_domain(std::string name, const dma_limits& limits,
             dma_guardable guardable = dma_guardable::none,
             const dma_check_options& checks = {}) noexcept;

  // `memory` has 1 to limits().max_mapping_bytes bytes; the other limits are not do_map()'s
  // concern: who calls it splits what it gives, or undoes it. A domain in which the memory is not
  // contiguous maps the first part that is, and says so by the segment's length; what follows it in
  // the memory then has another region, or not the next address. do_unmap() gets exactly the
  // segments that do_map() gave, each once, in any order.
  virtual result<dma_segment> do_map(std::span<std::byte> memory, dma_direction d) noexcept = 0;
  virtual void do_unmap(const dma_segment& s, dma_direction d) noexcept = 0;
  // The range can lie in several mappings, made together, if they are adjacent. Where CPU and
  // device see the same memory, as on all of today's hardware that is cache coherent, there is
  // nothing to do.
  virtual void do_sync_for_cpu(const dma_segment&, std::uint32_t, std::uint32_t,
                               dma_direction) noexcept {}
  virtual void do_sync_for_device(const dma_segment&, std::uint32_t, std::uint32_t,
                                  dma_direction) noexcept {}
  // For the checks: whether it is right to map `memory` at all, in a domain whose device must have
  // memory registered, where anything else is the caller's mistake.
  virtual bool reaches(std::span<const std::byte> memory) const noexcept {
    static_cast<void>(memory);
    return true;
  }

 private:
  friend class segment_mapper;  // sg_walk.h

  // With 1 to max_segment_bytes and max_mapping_bytes bytes.
  result<dma_segment> map_plainly(std::span<std::byte> memory, dma_direction d) noexcept {
    const result<dma_segment> s = do_map(memory, d);
    if (s && (s->length != memory.size() || !keeps_to(*s, limits_))) [[unlikely]] {
      do_unmap(*s, d);
      return fail(errc::too_large);
    }
    return s;
  }
  // With any number of bytes, and checks if there are any.
  [[gnu::cold]] result<dma_segment> map_specially(std::span<std::byte> memory, dma_direction d,
                                                  bool coherent,
                                                  std::source_location where) noexcept;
  [[gnu::cold]] void unmap_checked(const dma_segment& s, dma_direction d, bool coherent,
                                   std::source_location where) noexcept;
  [[gnu::cold]] void lend_checked(const dma_segment& s, std::uint32_t offset, std::uint32_t length,
                                  dma_direction d, std::source_location where) noexcept;
  [[gnu::cold]] void return_checked(const dma_segment& s, std::uint32_t offset,
                                    std::uint32_t length, dma_direction d,
                                    std::source_location where) noexcept;
  [[gnu::cold]] void access_checked(const dma_segment& s, std::uint32_t offset,
                                    std::uint32_t length, dma_direction access,
                                    std::source_location where) const noexcept;
  [[gnu::cold]] void list_mapped(std::span<const std::span<std::byte>> pieces, bool complete,
                                 std::span<const dma_segment> segments, dma_direction d,
                                 std::source_location where) noexcept;
  [[gnu::cold]] bool list_unmapped(std::span<const dma_segment> segments, bool complete,
                                   dma_direction d, std::source_location where) noexcept;

  // A range in an array.
  template <typename T>
  struct copy_of {
    template <typename Range>
    explicit copy_of(const Range& from) noexcept
        : memory(new(std::nothrow) T[static_cast<std::size_t>(std::ranges::distance(from))]),
          made(memory != nullptr) {
      if (made) all = {memory.get(), std::ranges::copy(from, memory.get()).out};
    }

    const std::unique_ptr<T[]> memory;
    const bool made;  // there was memory for it
    std::span<const T> all;
  };

  const std::string name_;
  const dma_limits limits_;
  const std::unique_ptr<dma_debug> debug_;  // null: no checks
  // What map() can do at once: as many bytes as one segment and one mapping can have; 0 with
  // checks, so that they cost nothing where there are none.
  const std::uint32_t plain_bytes_;
};

}  // namespace forebay
