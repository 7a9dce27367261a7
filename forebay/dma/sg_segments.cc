#include "forebay/dma/sg_segments.h"

#include <algorithm>

#include "forebay/base/assert.h"

namespace forebay {
namespace {

// Appends to an array of segments, within the limits.
class segment_writer {
 public:
  segment_writer(std::span<dma_segment> out, const dma_limits& limits) noexcept
      : next_(out.data()),
        end_(out.data() + std::min<std::size_t>(out.size(), limits.max_segments)),
        max_bytes_(limits.max_segment_bytes),
        boundary_mask_(limits.boundary_mask) {
    FOREBAY_DCHECK(max_bytes_ != 0 && (boundary_mask_ & (boundary_mask_ + 1)) == 0);
  }

  // False if there is no room for all of `s`; some of it may have been appended.
  bool add(dma_segment s) noexcept {
    if (last_ != nullptr && last_->region == s.region &&
        last_->address + last_->length == s.address)
      extend(s);
    while (s.length != 0) {
      if (next_ == end_) return false;
      const std::uint32_t n = fitting(s);
      last_ = next_++;
      *last_ = {s.address, n, s.region};
      s = part_of(s, n, s.length - n);
    }
    return true;
  }

  const dma_segment* end() const noexcept { return next_; }

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

  dma_segment* last_ = nullptr;  // the one that was appended to last
  dma_segment* next_;
  dma_segment* const end_;
  const std::uint32_t max_bytes_;
  const std::uint64_t boundary_mask_;
};

// Reads segments from the front, in other portions than they are in.
class segment_reader {
 public:
  explicit segment_reader(std::span<const dma_segment> segments) noexcept
      : at_(segments.data()), end_(segments.data() + segments.size()) {}

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
  const dma_segment* at_;
  const dma_segment* const end_;
  std::uint32_t offset_ = 0;
};

}  // namespace

class segment_mapper {
 public:
  static result<std::size_t> map(dma_domain& domain, std::span<const iovec> pieces, dma_direction d,
                                 std::span<dma_segment> out) noexcept {
    if (pieces.empty()) return fail(EINVAL);
    segment_writer writer(out, domain.limits());
    std::size_t done = 0;  // bytes
    for (const iovec& piece : pieces) {
      std::span<std::byte> rest(static_cast<std::byte*>(piece.iov_base), piece.iov_len);
      if (rest.empty()) [[unlikely]]
        return undo(domain, pieces, d, out, done, EINVAL);
      do {
        const auto s =
            domain.do_map(rest.first(std::min(rest.size(), dma_domain::max_mapping_bytes)), d);
        if (!s) [[unlikely]]
          return undo(domain, pieces, d, out, done, s.error());
        if (!writer.add(*s)) [[unlikely]] {
          domain.do_unmap(*s, d);
          return undo(domain, pieces, d, out, done, EMSGSIZE);
        }
        FOREBAY_DCHECK(s->length != 0 && s->length <= rest.size());
        done += s->length;
        rest = rest.subspan(s->length);
      } while (!rest.empty());
    }
    return static_cast<std::size_t>(writer.end() - out.data());
  }

  // The first `bytes` of the pieces.
  static void unmap(dma_domain& domain, std::span<const iovec> pieces, dma_direction d,
                    std::span<const dma_segment> segments, std::size_t bytes) noexcept {
    segment_reader reader(segments);
    for (const iovec& piece : pieces) {
      std::size_t rest = std::min(piece.iov_len, bytes);
      bytes -= rest;
      while (rest != 0) {
        const dma_segment s = reader.take(std::min(rest, dma_domain::max_mapping_bytes));
        domain.do_unmap(s, d);
        rest -= s.length;
      }
      if (bytes == 0) return;
    }
  }

 private:
  template <typename Error>
  [[gnu::cold, gnu::noinline]] static result<std::size_t> undo(
      dma_domain& domain, std::span<const iovec> pieces, dma_direction d,
      std::span<const dma_segment> segments, std::size_t bytes, Error error) noexcept {
    unmap(domain, pieces, d, segments, bytes);
    return fail(error);
  }
};

result<std::size_t> map_segments(dma_domain& domain, std::span<const iovec> pieces, dma_direction d,
                                 std::span<dma_segment> out, std::source_location where) noexcept {
  static_cast<void>(where);
  return segment_mapper::map(domain, pieces, d, out);
}

void unmap_segments(dma_domain& domain, std::span<const iovec> pieces, dma_direction d,
                    std::span<const dma_segment> segments) noexcept {
  segment_mapper::unmap(domain, pieces, d, segments, SIZE_MAX);
}

}  // namespace forebay
