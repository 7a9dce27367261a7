// 4 KiB of an address space that are read where they lie, without a pin: address_space::try_view().
#pragma once

#include <cstddef>
#include <span>

#include "forebay/base/racing_copy.h"
#include "forebay/cache/page_index.h"

namespace forebay {

// They may change, and may be anything, until still_valid() has said that what was read so far was
// right. Writes no memory that others see, so all CPUs may read one page at full speed. Not to be
// kept for long: it is good until the page changes. Good as long as the space.
class page_view {
 public:
  page_view() noexcept = default;

  // Whether there is a page.
  explicit operator bool() const noexcept { return static_cast<bool>(sight_); }
  // Copies bytes from inside the 4 KiB to memory of the caller's.
  void copy(std::size_t from, std::span<std::byte> out) const noexcept {
    racing_copy(out.data(), data_ + from, out.size());
  }
  // One object of T, which is trivially copyable, from inside them.
  template <typename T>
  T load(std::size_t from) const noexcept {
    return racing_load<T>(data_ + from);
  }
  // Whether all that has been read until now is what was there at one moment.
  bool still_valid() const noexcept { return sight_.still_valid(); }

 private:
  friend class address_space;
  page_view(const std::byte* data, const page_index::sight& s) noexcept : data_(data), sight_(s) {}

  const std::byte* data_ = nullptr;
  page_index::sight sight_;
};

}  // namespace forebay
