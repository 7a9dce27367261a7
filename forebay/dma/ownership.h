// Who owns a buffer, as types.
//
//    cpu_owned<buffer_ref> b = own(std::move(ref));          data(), bytes()
//    auto d = std::move(b).map(domain, dma_direction::from_device);
//    if (!d) …                                               b is as it was
//    start(d->segment());                                    no data() here
//    {
//      auto view = d->sync_for_cpu(0, 64);                   the first 64 bytes, for a while
//      look_at(view->bytes());
//    }
//    cpu_owned<buffer_ref> again = std::move(*d).unmap();
//
// Both hold the memory by its owner: a pin (page_ref, buffer_ref) or a plain span, whose maker
// answers for it. Move-only values, for one thread at a time. A device_owned that goes out of scope
// unmaps and then lets the owner go; the device must have ended by then.
#pragma once

#include <utility>

#include "forebay/base/assert.h"
#include "forebay/dma/domain.h"
#include "forebay/memory/buffer_pool.h"
#include "forebay/memory/page.h"

namespace forebay {

// How to find an owner's memory. To be specialised for other owners.
template <typename Owner>
struct dma_memory;

template <>
struct dma_memory<std::span<std::byte>> {
  static std::span<std::byte> bytes(std::span<std::byte> s) noexcept { return s; }
};
template <>
struct dma_memory<page_ref> {
  static std::span<std::byte> bytes(const page_ref& p) noexcept { return {p->data(), page_bytes}; }
};
template <>
struct dma_memory<buffer_ref> {
  static std::span<std::byte> bytes(const buffer_ref& b) noexcept { return b->bytes(); }
};

template <typename T>
concept DmaOwner = std::movable<T> && requires(const T& owner) {
  { dma_memory<T>::bytes(owner) } noexcept -> std::same_as<std::span<std::byte>>;
};

template <DmaOwner Owner>
class device_owned;

// Memory that the CPU may read and write.
template <DmaOwner Owner>
class [[nodiscard]] cpu_owned {
 public:
  explicit cpu_owned(Owner owner) noexcept : owner_(std::move(owner)) {}
  cpu_owned(cpu_owned&&) noexcept = default;
  cpu_owned& operator=(cpu_owned&&) noexcept = default;
  cpu_owned(const cpu_owned&) = delete;
  cpu_owned& operator=(const cpu_owned&) = delete;
  ~cpu_owned() = default;

  std::span<std::byte> bytes() const noexcept { return dma_memory<Owner>::bytes(owner_); }
  std::byte* data() const noexcept { return bytes().data(); }
  std::size_t size() const noexcept { return bytes().size(); }

  // Gives all of it to the device of `domain`. Errors as dma_domain::map(); *this is as it was
  // then, and empty otherwise.
  [[nodiscard]] result<device_owned<Owner>> map(
      dma_domain& domain, dma_direction d,
      std::source_location where = std::source_location::current()) && noexcept {
    const result<dma_segment> s = domain.map(bytes(), d, where);
    if (!s) return fail(s.error());
    return device_owned<Owner>(std::move(owner_), domain, *s, d);
  }

  // The owner, for other uses.
  Owner release() && noexcept { return std::move(owner_); }

 private:
  Owner owner_;
};

template <DmaOwner Owner>
cpu_owned<Owner> own(Owner owner) noexcept {
  return cpu_owned<Owner>(std::move(owner));
}

// A range of device-owned memory while it is lent to the CPU. It must go before its device_owned.
class [[nodiscard]] cpu_view {
 public:
  cpu_view(cpu_view&& other) noexcept
      : domain_(std::exchange(other.domain_, nullptr)),
        segment_(other.segment_),
        offset_(other.offset_),
        direction_(other.direction_),
        bytes_(std::exchange(other.bytes_, {})) {}
  cpu_view& operator=(cpu_view&&) = delete;
  ~cpu_view() {
    if (domain_ == nullptr) return;
    domain_->sync_for_device(segment_, offset_, static_cast<std::uint32_t>(bytes_.size()),
                             direction_);
  }

  std::span<std::byte> bytes() const noexcept { return bytes_; }

 private:
  template <DmaOwner Owner>
  friend class device_owned;

  cpu_view(dma_domain& domain, const dma_segment& s, std::uint32_t offset, dma_direction d,
           std::span<std::byte> bytes, const std::source_location& where) noexcept
      : domain_(&domain), segment_(s), offset_(offset), direction_(d), bytes_(bytes) {
    domain.sync_for_cpu(s, offset, static_cast<std::uint32_t>(bytes.size()), d, where);
  }

  dma_domain* domain_;
  dma_segment segment_;
  std::uint32_t offset_;
  dma_direction direction_;
  std::span<std::byte> bytes_;
};

// Memory that a device may read or write, under segment() in its domain. There is no way to the
// data but sync_for_cpu() and unmap().
template <DmaOwner Owner>
class [[nodiscard]] device_owned {
 public:
  device_owned(device_owned&& other) noexcept
      : owner_(std::move(other.owner_)),
        domain_(std::exchange(other.domain_, nullptr)),
        segment_(other.segment_),
        direction_(other.direction_) {}
  device_owned& operator=(device_owned&& other) noexcept {
    if (this != &other) {
      if (domain_ != nullptr) domain_->unmap(segment_, direction_);
      owner_ = std::move(other.owner_);
      domain_ = std::exchange(other.domain_, nullptr);
      segment_ = other.segment_;
      direction_ = other.direction_;
    }
    return *this;
  }
  ~device_owned() {
    if (domain_ != nullptr) domain_->unmap(segment_, direction_);
  }

  dma_address address() const noexcept { return segment_.address; }
  std::uint32_t length() const noexcept { return segment_.length; }
  const dma_segment& segment() const noexcept { return segment_; }
  dma_direction direction() const noexcept { return direction_; }
  dma_domain& domain() const noexcept { return *domain_; }

  // Lends `length` bytes from `offset` to the CPU until the view goes; the device must leave them
  // alone meanwhile. Error: EINVAL if they are not all in the buffer, or none.
  [[nodiscard]] result<cpu_view> sync_for_cpu(
      std::uint32_t offset, std::uint32_t length,
      std::source_location where = std::source_location::current()) noexcept {
    if (length == 0 || offset > segment_.length || length > segment_.length - offset)
      return fail(EINVAL);
    return cpu_view(*domain_, segment_, offset, direction_,
                    dma_memory<Owner>::bytes(owner_).subspan(offset, length), where);
  }

  // Takes it back from the device, which must have ended.
  cpu_owned<Owner> unmap(std::source_location where = std::source_location::current()) && noexcept {
    std::exchange(domain_, nullptr)->unmap(segment_, direction_, where);
    return cpu_owned<Owner>(std::move(owner_));
  }

 private:
  friend class cpu_owned<Owner>;

  device_owned(Owner owner, dma_domain& domain, const dma_segment& s, dma_direction d) noexcept
      : owner_(std::move(owner)), domain_(&domain), segment_(s), direction_(d) {}

  Owner owner_;
  dma_domain* domain_;  // null when it has been moved from
  dma_segment segment_;
  dma_direction direction_;
};

}  // namespace forebay
