// Page flipping: what a device has filled leaves with who wants it, and an empty buffer takes its
// place. No byte is copied.
//
//    before:   slot (the device's) = filled        caller = empty
//    after:    slot (the device's) = empty         caller = filled
//
// For receive rings: each descriptor has a slot, and a packet's payload goes to the cache or to
// another port as the page that it arrived in. Where little has arrived, copying it out of the slot
// (sync_for_cpu) and giving the same page back costs less than two mappings; drivers call that
// threshold copybreak.
//
// The empty one is mapped before the filled one is unmapped, so that a failure changes nothing: the
// slot's buffer can be offered to the device again, which drops what is in it, or copied. A domain
// with a limited number of mappings must have room for one more than there are slots.
#pragma once

#include <source_location>
#include <type_traits>
#include <utility>

#include "forebay/dma/ownership.h"

namespace forebay {

// Exchanges them, in the slot's domain and direction, and returns what was in the slot. The device
// must have ended with it, and gets slot.segment() anew. `empty` must be as long as what is there:
// EINVAL if it is not. Other errors as dma_domain::map(). On an error `empty` and the slot are as
// they were.
template <DmaOwner Owner>
[[nodiscard]] result<cpu_owned<Owner>> flip(
    device_owned<Owner>& slot, std::type_identity_t<Owner>&& empty,
    std::source_location where = std::source_location::current()) noexcept {
  cpu_owned<Owner> mine = own(std::move(empty));
  const auto failed = [&](std::error_code e) noexcept {
    empty = std::move(mine).release();
    return fail(e);
  };
  if (mine.size() != slot.length())
    return failed(std::make_error_code(std::errc::invalid_argument));
  auto its = std::move(mine).map(slot.domain(), slot.direction(), where);
  if (!its) return failed(its.error());
  return std::move(std::exchange(slot, std::move(*its))).unmap();
}

}  // namespace forebay
