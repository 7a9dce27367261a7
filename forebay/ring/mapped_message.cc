#include "forebay/ring/mapped_message.h"

#include <bit>

namespace forebay {
namespace {

// What an identity_domain made of a piece.
dma_segment segment_of(const iovec& piece) noexcept {
  return {dma_address{std::bit_cast<std::uintptr_t>(piece.iov_base)},
          static_cast<std::uint32_t>(piece.iov_len), dma_segment::no_region};
}

void unmap_each(dma_domain& domain, std::span<const iovec> pieces) noexcept {
  for (const iovec& p : pieces) domain.unmap(segment_of(p), dma_direction::to_device);
}

}  // namespace

result<> mapped_message::map(dma_domain& domain, std::span<iovec> pieces) noexcept {
  FOREBAY_ASSERT(pieces_.empty());
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    const auto s = domain.map({static_cast<std::byte*>(pieces[i].iov_base), pieces[i].iov_len},
                              dma_direction::to_device);
    if (!s) {
      unmap_each(domain, pieces.first(i));
      return fail(s.error());
    }
    FOREBAY_DCHECK(to_number(s->address) == std::bit_cast<std::uintptr_t>(pieces[i].iov_base));
  }
  domain_ = &domain;
  pieces_ = pieces;
  header_.set(pieces);
  return {};
}

void mapped_message::check_access() const noexcept {
  for (const iovec& p : pieces_) {
    domain_->check_access(segment_of(p), 0, static_cast<std::uint32_t>(p.iov_len),
                          dma_direction::to_device);
  }
}

void mapped_message::unmap() noexcept {
  if (pieces_.empty()) return;
  unmap_each(*domain_, pieces_);
  pieces_ = {};
}

}  // namespace forebay
