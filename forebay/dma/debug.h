// The checks of DMA domains, as the kernel's CONFIG_DMA_API_DEBUG: every active mapping is on
// record, with the line of the program that made it, and each call is compared with the record.
//
//    dma_domain --- map, unmap, sync, check_access ---> dma_debug --- by device address ---> record
//                                                           |                                  ^
//                                      of all domains:      '---------- by CPU address --------'
//
// Found are the mistakes of dma_mistake. Each gives one line on standard error:
//
//    forebay: dma "disk": unmap with another length: address 0x7f0000001000, length 512,
//      from_device, single; mapped at a.cc:12 with length 4096; by b.cc:34
//
// and then the process ends, or goes on and counts (dma_check). A mapping whose error nobody looks
// at does not compile: map() is [[nodiscard]] and gives a result<>.
//
// Switched on by the options a domain is made with, in release builds too; or when it is made by
// the environment, each variable with "*" for all or names of domains with commas between them:
//
//    FOREBAY_DMA_DEBUG        which domains are checked
//    FOREBAY_DMA_GUARD        which are checked and guarded: the CPU's stray access to memory that
//                             a device has faults where it happens (guard.h)
//    FOREBAY_DMA_REPORT_ONLY  of those, which go on after a mistake
//
// When memory for the record runs out, or more segments are mapped than it may hold, a line says so
// and the domain's checks end.
//
// Guards: one lock of the process guards every record, and is held while guards are set. It is a
// leaf, no other lock is taken under it. Any thread.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <source_location>
#include <span>
#include <string_view>

#include "forebay/base/list.h"
#include "forebay/dma/domain.h"
#include "forebay/dma/mapping_record.h"

namespace forebay {

enum class dma_mistake : std::uint8_t {
  // map
  no_bytes,
  overflowing_length,  // past the end of the address space
  stack_memory,        // of the calling thread
  constant_memory,     // the device would write the program's text or constants
  unreachable_memory,  // not registered, where the device needs that
  segment_too_long,    // of a list; for a single mapping it is an error value
  segment_over_boundary,
  too_many_segments,
  unequal_lengths,  // a list's pieces and segments
  overlap,          // with another active mapping, and one of them lets the device write
  // unmap
  unmap_of_unmapped,
  unmap_twice,
  unmap_with_other_length,
  unmap_with_other_direction,
  unmap_as_other_kind,
  unmap_with_other_count,
  unmap_while_lent,
  // sync
  sync_of_unmapped,
  sync_out_of_range,
  sync_with_other_direction,
  lent_already,
  not_lent,
  // the device's access
  access_to_unmapped,
  access_in_other_direction,
  access_past_end,
  access_while_lent,
  // the domain's end
  leak,
};

inline constexpr std::size_t dma_mistakes = static_cast<std::size_t>(dma_mistake::leak) + 1;

std::string_view to_string(dma_mistake m) noexcept;

class dma_debug {
 public:
  // Null if the domain is to have no checks, or there is no memory for them. `name` must outlive
  // it.
  static std::unique_ptr<dma_debug> create(std::string_view name, const dma_limits& limits,
                                           dma_guardable guardable,
                                           const dma_check_options& options) noexcept;
  // What is still mapped is a leak.
  ~dma_debug();
  dma_debug(const dma_debug&) = delete;
  dma_debug& operator=(const dma_debug&) = delete;

  // How many mistakes of a kind have been found, and of all kinds.
  std::uint64_t count(dma_mistake m) const noexcept;
  std::uint64_t mistakes() const noexcept;
  // Mappings that are on record.
  std::size_t active() const noexcept;
  // False once memory has run out.
  bool working() const noexcept;
  // Whether stray accesses to the domain's mappings, those that can be guarded, fault.
  bool guards() const noexcept;

  // Writes what is known of the mapping, of any checked domain, that has this address of the CPU's
  // as one line without an end into `out`; returns its length, 0 if there is none. For the handlers
  // of faults too, but not for those of signals that come at any time.
  static std::size_t explain(const void* address, std::span<char> out) noexcept;

  // ---- Called by dma_domain ----

  // Before memory is mapped. `reached`: by the device. False if it cannot be.
  bool to_be_mapped(std::span<const std::byte> memory, dma_direction d, bool reached,
                    const std::source_location& where) noexcept;
  void mapped(dma_kind kind, std::span<const dma_segment> segments,
              std::span<const std::span<std::byte>> pieces, dma_direction d,
              const std::source_location& where) noexcept;
  void no_memory_for_record() noexcept;

  struct mapped_as {
    dma_segment segment;  // the first
    dma_direction direction;
  };
  // Takes it off the record. Returns how it had been mapped, which may not be how it was to be
  // unmapped; none if it was not.
  std::optional<mapped_as> to_be_unmapped(dma_kind kind, std::span<const dma_segment> segments,
                                          dma_direction d,
                                          const std::source_location& where) noexcept;

  // A part of a segment is about to be lent to the CPU, or to be given back; false if it must not
  // be.
  bool to_be_lent(const dma_segment& s, std::uint32_t offset, std::uint32_t length, dma_direction d,
                  const std::source_location& where) noexcept;
  bool to_be_returned(const dma_segment& s, std::uint32_t offset, std::uint32_t length,
                      dma_direction d, const std::source_location& where) noexcept;
  // After to_be_returned(): it has been.
  void returned(const dma_segment& s, std::uint32_t offset, std::uint32_t length) noexcept;

  void access(const dma_segment& s, std::uint32_t offset, std::uint32_t length,
              dma_direction direction, const std::source_location& where) noexcept;

 private:
  class held;
  struct call;
  struct place {
    dma_mapping* in = nullptr;
    std::uint64_t start = 0;  // of the range in the mapping's bytes
    bool inside = false;      // all of it lies in the segment that was found
    bool only = true;         // which is the only one there
  };
  struct ended {
    dma_segment segment;
    std::source_location mapped;
    std::source_location unmapped;
  };

  dma_debug(std::string_view name, const dma_limits& limits, bool abort, dma_guardable guard,
            std::uint32_t segments_max) noexcept;

  void report(const held&, dma_mistake m, const call& c, const dma_mapping* mapping,
              std::string_view more = {}) noexcept;
  void switch_off(const held&, const char* why) noexcept;
  bool check_segments(const held&, const call& c, const dma_mapping& m) noexcept;
  bool check_overlap(const held&, const call& c, const dma_mapping& m,
                     std::uint32_t piece) noexcept;
  void enter(const held&, const call& c, std::unique_ptr<dma_mapping> m) noexcept;
  bool can_be_guarded(std::span<const dma_segment> segments,
                      std::span<const std::span<std::byte>> pieces) const noexcept;
  void stop_guarding(const held&, dma_mapping& m) noexcept;
  void remove(const held&, dma_mapping& m) noexcept;
  dma_mapping* find_exact(const held&, dma_kind kind, std::span<const dma_segment> segments,
                          dma_direction d) const noexcept;
  void report_unknown(const held&, const call& c) noexcept;
  void give_lent_to_twin(const held&, dma_mapping& m) noexcept;
  void compare(const held&, const call& c, const dma_mapping& m,
               std::span<const dma_segment> segments) noexcept;
  template <typename Prefer>
  place find_part(const held&, const dma_segment& s, std::uint64_t offset, std::uint64_t length,
                  Prefer prefer) const noexcept;
  bool check_sync(const held&, const call& c, const place& p) noexcept;
  void report_leaks(const held&) noexcept;

  const std::string_view name_;
  const dma_limits limits_;
  const bool abort_;
  const dma_guardable guardable_;
  const std::uint32_t segments_max_;

  // Guarded by the lock.
  bool working_ = true;
  bool guards_;
  intrusive_list<dma_mapping, &dma_mapping::link> mappings_;
  range_index<dma_mapping> by_address_;  // spaces are regions
  std::size_t active_ = 0;
  std::array<std::uint64_t, dma_mistakes> counts_{};
  std::array<ended, 64> ended_{};  // the last ones, a ring
  std::size_t ended_next_ = 0;
};

}  // namespace forebay
