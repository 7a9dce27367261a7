// How pieces become segments, and segments the mappings that they were made of: what
// sg_segments.cc does with arrays and sg_list.cc with chains. Not for others.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "forebay/base/assert.h"
#include "forebay/dma/domain.h"
#include "forebay/os/file.h"

namespace forebay {

inline std::span<std::byte> memory_of(const iovec& piece) noexcept {
  return {static_cast<std::byte*>(piece.iov_base), piece.iov_len};
}

// Appends to segments, within the limits. Sink::next() gives the place for one more, or null.
template <typename Sink>
class segment_writer {
 public:
  segment_writer(Sink& sink, const dma_limits& limits) noexcept
      : sink_(sink), max_bytes_(limits.max_segment_bytes), boundary_mask_(limits.boundary_mask) {
    FOREBAY_DCHECK(max_bytes_ != 0 && (boundary_mask_ & (boundary_mask_ + 1)) == 0);
  }

  // False if there is no room for all of `s`; some of it may have been appended.
  bool add(dma_segment s) noexcept {
    if (last_ != nullptr && last_->region == s.region &&
        last_->address + last_->length == s.address)
      extend(s);
    while (s.length != 0) {
      dma_segment* const place = sink_.next();
      if (place == nullptr) return false;
      const std::uint32_t n = fitting(s);
      *place = {s.address, n, s.region};
      last_ = place;
      s = part_of(s, n, s.length - n);
    }
    return true;
  }

 private:
  // How many bytes from the start of `s` can be one segment.
  std::uint32_t fitting(const dma_segment& s) const noexcept {
    const std::uint64_t last_before_boundary =
        boundary_mask_ - (to_number(s.address) & boundary_mask_);
    return static_cast<std::uint32_t>(
        std::min<std::uint64_t>(std::min(s.length, max_bytes_) - 1u, last_before_boundary) + 1);
  }

  // Moves what fits from the start of `s`, which follows it, into the last segment.
  void extend(dma_segment& s) noexcept {
    // Without a boundary this holds for address 0 only, which follows the last address there is.
    if ((to_number(s.address) & boundary_mask_) == 0) return;
    const std::uint32_t n = std::min(fitting(s), max_bytes_ - last_->length);
    last_->length += n;
    s = part_of(s, n, s.length - n);
  }

  Sink& sink_;
  dma_segment* last_ = nullptr;  // the one that was appended to last
  const std::uint32_t max_bytes_;
  const std::uint64_t boundary_mask_;
};

// Reads segments from the front, in other portions than they are in.
template <typename Iterator>
class segment_reader {
 public:
  segment_reader(Iterator first, Iterator end) noexcept : at_(first), end_(end) {}

  // What is contiguous from here on, and goes on, but no more than `bytes`.
  dma_segment take(std::size_t bytes) noexcept {
    FOREBAY_ASSERT(at_ != end_);
    dma_segment run = part_of(*at_, offset_, 0);
    do {
      const auto n = static_cast<std::uint32_t>(
          std::min<std::size_t>(bytes - run.length, at_->length - offset_));
      run.length += n;
      offset_ += n;
      if (offset_ != at_->length) break;
      ++at_;
      offset_ = 0;
    } while (run.length != bytes && at_ != end_ && at_->region == run.region &&
             at_->address == run.address + run.length);
    return run;
  }

 private:
  Iterator at_;
  const Iterator end_;
  std::uint32_t offset_ = 0;  // in *at_
};

// A friend of the domain's. Pieces are a range of iovec.
class segment_mapper {
 public:
  // Maps all pieces. Nothing is mapped on an error; what is in `sink` has no meaning then.
  // Sink::begin() and end() are the segments, Sink::no_room() says why there is no next().
  template <typename Pieces, typename Sink>
  static result<> map(dma_domain& domain, const Pieces& pieces, dma_direction d,
                      Sink& sink) noexcept {
    segment_writer<Sink> writer(sink, domain.limits());
    std::size_t done = 0;  // bytes
    for (const iovec& piece : pieces) {
      std::span<std::byte> rest = memory_of(piece);
      if (rest.empty()) [[unlikely]]
        return undo(domain, pieces, d, sink, done, EINVAL);
      do {
        const auto s = domain.do_map(
            rest.first(std::min<std::size_t>(rest.size(), domain.limits().max_mapping_bytes)), d);
        if (!s) [[unlikely]]
          return undo(domain, pieces, d, sink, done, s.error());
        FOREBAY_DCHECK(s->length != 0 && s->length <= rest.size());
        if (!writer.add(*s)) [[unlikely]] {
          domain.do_unmap(*s, d);
          return undo(domain, pieces, d, sink, done, sink.no_room());
        }
        done += s->length;
        rest = rest.subspan(s->length);
      } while (!rest.empty());
    }
    return {};
  }

  // Unmaps the first `bytes` of the pieces, as they were mapped.
  template <typename Pieces, typename Iterator>
  static void unmap(dma_domain& domain, const Pieces& pieces, dma_direction d,
                    segment_reader<Iterator> segments, std::size_t bytes) noexcept {
    for (const iovec& piece : pieces) {
      std::size_t rest = std::min(piece.iov_len, bytes);
      bytes -= rest;
      while (rest != 0) {
        const dma_segment s =
            segments.take(std::min<std::size_t>(rest, domain.limits().max_mapping_bytes));
        domain.do_unmap(s, d);
        rest -= s.length;
      }
      if (bytes == 0) return;
    }
  }

 private:
  template <typename Pieces, typename Sink, typename Error>
  [[gnu::cold, gnu::noinline]] static result<> undo(dma_domain& domain, const Pieces& pieces,
                                                    dma_direction d, const Sink& sink,
                                                    std::size_t bytes, Error error) noexcept {
    unmap(domain, pieces, d, segment_reader(sink.begin(), sink.end()), bytes);
    return fail(error);
  }
};

}  // namespace forebay
