#include "forebay/dma/sg_list.h"

#include <algorithm>
#include <cstring>

#include "forebay/dma/sg_walk.h"

namespace forebay {
namespace {

// Fills a chain.
class chain_sink {
 public:
  chain_sink(sg_chain<dma_segment>& chain, std::uint32_t max_segments) noexcept
      : chain_(chain), max_segments_(max_segments) {}

  dma_segment* next() noexcept {
    return chain_.size() == max_segments_ ? nullptr : chain_.push_back({});
  }
  int no_room() const noexcept { return chain_.size() == max_segments_ ? EMSGSIZE : ENOMEM; }

  auto begin() const noexcept { return chain_.begin(); }
  auto end() const noexcept { return chain_.end(); }

 private:
  sg_chain<dma_segment>& chain_;
  const std::uint32_t max_segments_;
};

// Calls f(segment, offset, length) for the parts of segments that `bytes` bytes from `offset` in
// the first lie in.
template <typename F>
void each_part(sg_chain<dma_segment>::iterator at, std::uint32_t offset, std::size_t bytes,
               F f) noexcept {
  for (; bytes != 0; ++at) {
    const auto n = static_cast<std::uint32_t>(std::min<std::size_t>(at->length - offset, bytes));
    f(*at, offset, n);
    bytes -= n;
    offset = 0;
  }
}

}  // namespace

// ---- sg_pieces ----

sg_pieces::sg_pieces(const chain& entries, std::size_t offset, std::size_t bytes) noexcept
    : at_(entries.begin()), offset_(offset), bytes_(bytes) {
  if (bytes == 0) return;
  for (; offset_ >= at_->iov_len; ++at_) offset_ -= at_->iov_len;
}

std::size_t sg_pieces::copy_to(std::span<std::byte> out) const noexcept {
  std::size_t done = 0;
  for (const std::span<std::byte> piece : *this) {
    const std::size_t n = std::min(piece.size(), out.size() - done);
    if (n == 0) break;
    std::memcpy(out.data() + done, piece.data(), n);
    done += n;
  }
  return done;
}

std::size_t sg_pieces::copy_from(std::span<const std::byte> data) const noexcept {
  std::size_t done = 0;
  for (const std::span<std::byte> piece : *this) {
    const std::size_t n = std::min(piece.size(), data.size() - done);
    if (n == 0) break;
    std::memcpy(piece.data(), data.data() + done, n);
    done += n;
  }
  return done;
}

// ---- sg_list ----

bool sg_list::follows_last(const std::byte* data) noexcept {
  const iovec& last = entries_.back();
  return static_cast<const std::byte*>(last.iov_base) + last.iov_len == data;
}

result<> sg_list::add(std::byte* data, std::size_t bytes) noexcept {
  if (bytes == 0) return {};
  if (bytes > SIZE_MAX - bytes_) return fail(EOVERFLOW);
  if (!entries_.empty() && follows_last(data)) {
    entries_.back().iov_len += bytes;
  } else {
    if (entries_.size() >= max_entries_) return fail(EMSGSIZE);
    if (entries_.push_back({data, bytes}) == nullptr) return fail(ENOMEM);
  }
  bytes_ += bytes;
  return {};
}

result<> sg_list::append(std::span<std::byte> memory) noexcept {
  return add(memory.data(), memory.size());
}

result<> sg_list::append(std::span<const iovec> pieces) noexcept {
  const auto before = entries_.here();
  const std::size_t bytes_before = bytes_;
  const iovec last_before = entries_.empty() ? iovec{} : entries_.back();
  for (const iovec& p : pieces) {
    if (const auto r = add(static_cast<std::byte*>(p.iov_base), p.iov_len); !r) {
      entries_.go_back(before);
      if (!entries_.empty()) entries_.back() = last_before;
      bytes_ = bytes_before;
      return r;
    }
  }
  return {};
}

result<> sg_list::append(const page& p, std::size_t offset, std::size_t length) noexcept {
  const std::size_t size = page_bytes << p.order;
  if (offset > size || length > size - offset) return fail(EINVAL);
  return add(p.data() + offset, length);
}

result<> sg_list::append(sg_list&& other) noexcept {
  if (&other == this || &other.entries_.memory() != &entries_.memory()) return fail(EINVAL);
  if (other.entries() > max_entries_ - std::min(max_entries_, entries())) return fail(EMSGSIZE);
  if (other.bytes_ > SIZE_MAX - bytes_) return fail(EOVERFLOW);
  entries_.splice(std::move(other.entries_));
  bytes_ += std::exchange(other.bytes_, 0);
  return {};
}

result<sg_list> sg_list::split(std::size_t at) noexcept {
  if (at > bytes_) return fail(EINVAL);
  sg_list rest(entries_.memory(), max_entries_);
  if (at == bytes_) return rest;
  // The entry with byte `at`, and how many bytes of it stay.
  auto entry = entries_.begin();
  std::size_t staying = at;
  for (; staying >= entry->iov_len; ++entry) staying -= entry->iov_len;
  const iovec whole = *entry;
  if (!entries_.cut(entry, rest.entries_)) return fail(ENOMEM);
  if (staying != 0) {
    // There is room where the entry was, unless it was the first of its chunk.
    if (entries_.push_back({whole.iov_base, staying}) == nullptr) {
      entries_.splice(std::move(rest.entries_));
      return fail(ENOMEM);
    }
    rest.entries_.front() = {static_cast<std::byte*>(whole.iov_base) + staying,
                             whole.iov_len - staying};
  }
  rest.bytes_ = bytes_ - at;
  bytes_ = at;
  return rest;
}

result<> sg_list::skip(std::size_t n) noexcept {
  if (n > bytes_) return fail(EINVAL);
  bytes_ -= n;
  while (n != 0) {
    iovec& first = entries_.front();
    if (n < first.iov_len) {
      first = {static_cast<std::byte*>(first.iov_base) + n, first.iov_len - n};
      break;
    }
    n -= first.iov_len;
    entries_.pop_front();
  }
  return {};
}

result<sg_mapping> sg_list::map(dma_domain& domain, dma_direction d,
                                std::source_location where) && noexcept {
  if (empty()) return fail(EINVAL);
  sg_chain<dma_segment> segments(entries_.memory());
  chain_sink sink(segments, domain.limits().max_segments);
  if (const auto r = segment_mapper::map(domain, entries_, d, sink); !r) return fail(r.error());
  if (domain.checked()) [[unlikely]]
    domain.note_mapped(pieces(), segments, d, where);
  return sg_mapping(std::move(*this), std::move(segments), domain, d);
}

// ---- sg_mapping ----

sg_mapping& sg_mapping::operator=(sg_mapping&& other) noexcept {
  if (this != &other) {
    if (domain_ != nullptr) release();
    domain_ = std::exchange(other.domain_, nullptr);
    direction_ = other.direction_;
    list_ = std::move(other.list_);
    segments_ = std::move(other.segments_);
  }
  return *this;
}

void sg_mapping::release(std::source_location where) noexcept {
  dma_domain& domain = *std::exchange(domain_, nullptr);
  if (!domain.checked() || domain.note_unmap(segments_, direction_, where)) [[likely]] {
    segment_mapper::unmap(domain, list_.entries_, direction_,
                          segment_reader(segments_.begin(), segments_.end()), SIZE_MAX);
  }
  segments_.clear();
}

result<sg_view> sg_mapping::sync_for_cpu(std::size_t offset, std::size_t length,
                                         std::source_location where) noexcept {
  if (length == 0 || offset > bytes() || length > bytes() - offset) return fail(EINVAL);
  auto segment = segments_.begin();
  std::size_t in_segment = offset;
  for (; in_segment >= segment->length; ++segment) in_segment -= segment->length;
  return sg_view(*domain_, direction_, segment, static_cast<std::uint32_t>(in_segment),
                 list_.pieces(offset, length), where);
}

// ---- sg_view ----

sg_view::sg_view(dma_domain& domain, dma_direction d, sg_chain<dma_segment>::iterator segment,
                 std::uint32_t offset, sg_pieces pieces, const std::source_location& where) noexcept
    : domain_(&domain), direction_(d), segment_(segment), offset_(offset), pieces_(pieces) {
  each_part(segment_, offset_, pieces_.bytes(),
            [&](const dma_segment& s, std::uint32_t from, std::uint32_t n) noexcept {
              domain.sync_for_cpu(s, from, n, d, where);
            });
}

sg_view::~sg_view() {
  if (domain_ == nullptr) return;
  each_part(segment_, offset_, pieces_.bytes(),
            [&](const dma_segment& s, std::uint32_t from, std::uint32_t n) noexcept {
              domain_->sync_for_device(s, from, n, direction_);
            });
}

}  // namespace forebay
