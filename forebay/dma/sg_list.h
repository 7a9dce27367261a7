// Scatter-gather list: memory in pieces, in the order in which it is transferred, as Linux's
// scatterlist with its sg_table.
//
//    sg_list (the CPU's)                                sg_mapping (the device's)
//    | piece | piece | piece | --> | piece | …  -map->  | segment | segment | --> | segment | …
//         ^                                                  |
//         +---------------------- unmap --------------------+    sync_for_cpu: a byte range is the
//                                                                 CPU's for a while (sg_view)
//
// A list does not hold its memory: what lies in it must stay, as for a bio. It holds chunks of
// entries (sg_chain.h), from memory that the caller provides, and never more entries than it was
// told. Neighbours in memory become one piece as they are appended.
//
// Lists, mappings and views are move-only values for one thread at a time. A failed call leaves the
// list as it was.
#pragma once

#include <cstddef>
#include <source_location>
#include <span>
#include <utility>

#include "forebay/base/assert.h"
#include "forebay/base/result.h"
#include "forebay/dma/domain.h"
#include "forebay/dma/sg_chain.h"
#include "forebay/memory/page.h"
#include "forebay/os/file.h"

namespace forebay {

class sg_mapping;

// A stretch of a list's bytes: a range of spans. Good as long as the list's memory and entries.
class sg_pieces {
 public:
  using chain = sg_chain<iovec>;

  class iterator {
   public:
    using value_type = std::span<std::byte>;
    using difference_type = std::ptrdiff_t;

    iterator() noexcept = default;
    iterator(chain::iterator at, std::size_t offset, std::size_t bytes) noexcept
        : at_(at), offset_(offset), rest_(bytes) {}

    std::span<std::byte> operator*() const noexcept {
      return {static_cast<std::byte*>(at_->iov_base) + offset_, length()};
    }
    iterator& operator++() noexcept {
      rest_ -= length();
      offset_ = 0;
      ++at_;
      return *this;
    }
    iterator operator++(int) noexcept {
      const iterator here = *this;
      ++*this;
      return here;
    }
    // Of iterators over the same stretch.
    friend bool operator==(const iterator& a, const iterator& b) noexcept {
      return a.rest_ == b.rest_;
    }

   private:
    std::size_t length() const noexcept { return std::min(at_->iov_len - offset_, rest_); }

    chain::iterator at_;
    std::size_t offset_ = 0;  // in *at_
    std::size_t rest_ = 0;    // bytes, from here to the end
  };

  sg_pieces() noexcept = default;
  // `offset` and `bytes` must lie in what the chain has.
  sg_pieces(const chain& entries, std::size_t offset, std::size_t bytes) noexcept;

  iterator begin() const noexcept { return {at_, offset_, bytes_}; }
  iterator end() const noexcept { return {}; }
  std::size_t bytes() const noexcept { return bytes_; }

  // To flat memory and from it, as many bytes as there are in both; returns how many.
  std::size_t copy_to(std::span<std::byte> out) const noexcept;
  std::size_t copy_from(std::span<const std::byte> data) const noexcept;

 private:
  chain::iterator at_;
  std::size_t offset_ = 0;
  std::size_t bytes_ = 0;
};

class [[nodiscard]] sg_list {
 public:
  // Its chunks come from `memory`. It takes no more than `max_entries` pieces.
  explicit sg_list(sg_memory& memory, std::size_t max_entries = SIZE_MAX) noexcept
      : entries_(memory), max_entries_(max_entries) {}
  sg_list(sg_list&& other) noexcept
      : entries_(std::move(other.entries_)),
        bytes_(std::exchange(other.bytes_, 0)),
        max_entries_(other.max_entries_) {}
  sg_list& operator=(sg_list&& other) noexcept {
    if (this != &other) {
      entries_ = std::move(other.entries_);
      bytes_ = std::exchange(other.bytes_, 0);
      max_entries_ = other.max_entries_;
    }
    return *this;
  }
  ~sg_list() = default;

  std::size_t bytes() const noexcept { return bytes_; }
  std::size_t entries() const noexcept { return entries_.size(); }
  bool empty() const noexcept { return bytes_ == 0; }

  // Adds memory at the end; without effect if it has no bytes. Errors: EMSGSIZE if that is one
  // entry too many, EOVERFLOW if the bytes cannot be counted, ENOMEM if there is no chunk.
  [[nodiscard]] result<> append(std::span<std::byte> memory) noexcept;
  // All or none of them.
  [[nodiscard]] result<> append(std::span<const iovec> pieces) noexcept;
  // Of a block of frames that begins with `p`. EINVAL if it has not that many bytes.
  [[nodiscard]] result<> append(const page& p, std::size_t offset = 0,
                                std::size_t length = page_bytes) noexcept;
  // All of another list, which is empty after: its chunks are chained on. Errors: EMSGSIZE, and
  // EINVAL if its chunks come from elsewhere.
  [[nodiscard]] result<> append(sg_list&& other) noexcept;

  // Keeps the first `at` bytes and returns the others as a list. No data is copied; a piece may end
  // up in both. Errors: EINVAL if there are fewer, ENOMEM.
  [[nodiscard]] result<sg_list> split(std::size_t at) noexcept;

  // Lets go of the first `n` bytes. Error: EINVAL if there are fewer.
  [[nodiscard]] result<> skip(std::size_t n) noexcept;

  void clear() noexcept {
    entries_.clear();
    bytes_ = 0;
  }

  sg_pieces pieces() const noexcept { return {entries_, 0, bytes_}; }
  // A part of it. It must lie in the list.
  sg_pieces pieces(std::size_t offset, std::size_t length) const noexcept {
    FOREBAY_ASSERT(offset <= bytes_ && length <= bytes_ - offset);
    return {entries_, offset, length};
  }

  // From `offset` on, as sg_pieces has it (Linux's sg_pcopy_to_buffer, sg_pcopy_from_buffer).
  std::size_t copy_to(std::span<std::byte> out, std::size_t offset = 0) const noexcept {
    return offset < bytes_ ? pieces(offset, bytes_ - offset).copy_to(out) : 0;
  }
  std::size_t copy_from(std::span<const std::byte> data, std::size_t offset = 0) const noexcept {
    return offset < bytes_ ? pieces(offset, bytes_ - offset).copy_from(data) : 0;
  }

  // Gives all of it to the device of `domain`. The segments are chained in memory from the same
  // place as the list's own. Errors: EINVAL if there are no bytes, EMSGSIZE if it takes more than
  // the domain's max_segments, ENOMEM, and as dma_domain::map(), but nothing is too large for one
  // segment; *this is as it was then and nothing is mapped. Otherwise it is empty.
  [[nodiscard]] result<sg_mapping> map(
      dma_domain& domain, dma_direction d,
      std::source_location where = std::source_location::current()) && noexcept;

 private:
  friend class sg_mapping;

  result<> add(std::byte* data, std::size_t bytes) noexcept;
  bool follows_last(const std::byte* data) noexcept;

  sg_chain<iovec> entries_;  // each with bytes
  std::size_t bytes_ = 0;    // of all entries
  std::size_t max_entries_;
};

// A byte range of an sg_mapping while it is lent to the CPU. It must go before the mapping.
class [[nodiscard]] sg_view {
 public:
  sg_view(sg_view&& other) noexcept
      : domain_(std::exchange(other.domain_, nullptr)),
        direction_(other.direction_),
        segment_(other.segment_),
        offset_(other.offset_),
        pieces_(std::exchange(other.pieces_, {})) {}
  sg_view& operator=(sg_view&&) = delete;
  ~sg_view();

  const sg_pieces& pieces() const noexcept { return pieces_; }
  std::size_t bytes() const noexcept { return pieces_.bytes(); }

 private:
  friend class sg_mapping;

  sg_view(dma_domain& domain, dma_direction d, sg_chain<dma_segment>::iterator segment,
          std::uint32_t offset, sg_pieces pieces, const std::source_location& where) noexcept;

  dma_domain* domain_;
  dma_direction direction_;
  sg_chain<dma_segment>::iterator segment_;  // the first
  std::uint32_t offset_;                     // in it
  sg_pieces pieces_;
};

// A list that a device may read or write, by its segments. There is no way to the data but
// sync_for_cpu() and unmap(). What goes out of scope is unmapped; the device must have ended.
class [[nodiscard]] sg_mapping {
 public:
  sg_mapping(sg_mapping&& other) noexcept
      : domain_(std::exchange(other.domain_, nullptr)),
        direction_(other.direction_),
        list_(std::move(other.list_)),
        segments_(std::move(other.segments_)) {}
  sg_mapping& operator=(sg_mapping&& other) noexcept;
  ~sg_mapping() {
    if (domain_ != nullptr) release();
  }

  // A forward range of dma_segment, each within the domain's limits; good as long as the mapping.
  const sg_chain<dma_segment>& segments() const noexcept { return segments_; }
  std::size_t bytes() const noexcept { return list_.bytes(); }
  dma_direction direction() const noexcept { return direction_; }
  dma_domain& domain() const noexcept { return *domain_; }

  // Lends `length` bytes from `offset` to the CPU until the view goes; the device must leave them
  // alone meanwhile. Error: EINVAL if they are not all in the list, or none.
  [[nodiscard]] result<sg_view> sync_for_cpu(
      std::size_t offset, std::size_t length,
      std::source_location where = std::source_location::current()) noexcept;

  // Takes it back from the device, which must have ended.
  sg_list unmap(std::source_location where = std::source_location::current()) && noexcept {
    release(where);
    return std::move(list_);
  }

 private:
  friend class sg_list;

  sg_mapping(sg_list list, sg_chain<dma_segment> segments, dma_domain& domain,
             dma_direction d) noexcept
      : domain_(&domain), direction_(d), list_(std::move(list)), segments_(std::move(segments)) {}

  void release(std::source_location where = std::source_location::current()) noexcept;

  dma_domain* domain_;  // null when it has been moved from
  dma_direction direction_;
  sg_list list_;
  sg_chain<dma_segment> segments_;  // as many bytes as in the list, in the same order
};

}  // namespace forebay
