// Memory that the CPU and a device use at the same time: descriptor rings, mailboxes, status
// blocks (Linux's dma_alloc_coherent).
//
//    auto ring = coherent_buffer::create(memory, domain, 4096);
//    if (!ring) …
//    tell_device(ring->address());      where the device finds it
//    write_to(ring->bytes());           where the CPU does
//
// Allocated once, from an arena, and mapped for life in both directions. Nobody owns a part of it
// for a time, so there is no sync: what both write must be atomic, and ordered as in ordinary
// shared memory. The device must have ended before the buffer goes.
//
// A move-only value, for one thread at a time; its bytes are for all.
#pragma once

#include <source_location>
#include <span>
#include <utility>

#include "forebay/dma/domain.h"
#include "forebay/memory/arena.h"

namespace forebay {

class [[nodiscard]] coherent_buffer {
 public:
  // `bytes` of zeros at the start of a page frame, in frames that are contiguous for the CPU.
  // Errors, nothing is taken or mapped then: EINVAL for no bytes, errc::too_large for more than the
  // arena's largest block, ENOMEM, and as dma_domain::map().
  [[nodiscard]] static result<coherent_buffer> create(
      arena& memory, dma_domain& domain, std::size_t bytes,
      std::source_location where = std::source_location::current()) noexcept;

  coherent_buffer(coherent_buffer&& other) noexcept
      : frames_(std::move(other.frames_)),
        domain_(std::exchange(other.domain_, nullptr)),
        segment_(other.segment_) {}
  coherent_buffer& operator=(coherent_buffer&& other) noexcept {
    if (this != &other) {
      end();
      frames_ = std::move(other.frames_);
      domain_ = std::exchange(other.domain_, nullptr);
      segment_ = other.segment_;
    }
    return *this;
  }
  ~coherent_buffer() { end(); }

  // For the CPU.
  std::byte* data() const noexcept { return frames_->data(); }
  std::size_t size() const noexcept { return segment_.length; }
  std::span<std::byte> bytes() const noexcept { return {data(), size()}; }

  // For the device.
  dma_address address() const noexcept { return segment_.address; }
  const dma_segment& segment() const noexcept { return segment_; }
  dma_domain& domain() const noexcept { return *domain_; }

 private:
  coherent_buffer(page_ref frames, dma_domain& domain, const dma_segment& s) noexcept
      : frames_(std::move(frames)), domain_(&domain), segment_(s) {}

  void end() noexcept {
    if (domain_ != nullptr) domain_->unmap_coherent(segment_);
  }

  page_ref frames_;     // a block
  dma_domain* domain_;  // null when it has been moved from
  dma_segment segment_;
};

}  // namespace forebay
