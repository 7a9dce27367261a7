#include "forebay/memory/slab_debug.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <span>

#include "forebay/base/cache_line.h"
#include "forebay/base/debug_names.h"
#include "forebay/base/stats.h"
#include "forebay/os/clock.h"
#include "forebay/os/stack_trace.h"

namespace forebay {
namespace {

constexpr std::size_t least_right_bytes = 16;

struct owner {
  stack_trace where;
  std::uint64_t when_ns = 0;  // 0: there was none
  unsigned thread = 0;
};

[[gnu::noinline]] owner owner_now() noexcept {
  // Without this function, note_…() and the cache's own.
  return {stack_trace::capture(3), monotonic_clock::now_ns(), thread_number()};
}

std::string describe_owner(const char* verb, const owner& o, symbolizer& names) {
  if (o.when_ns == 0) return {};
  // A write far enough behind the object reaches the record too.
  if (o.where.depth > stack_trace::depth_max) return fmt::format("  {}: overwritten\n", verb);
  const double ago = static_cast<double>(monotonic_clock::now_ns() - o.when_ns) / 1e9;
  return fmt::format("  {} by thread {}, {:.6f} s ago:\n{}", verb, o.thread, ago,
                     names.describe(o.where));
}

const std::byte* first_other(std::span<const std::byte> in, std::byte value) noexcept {
  for (const std::byte& b : in) {
    if (b != value) return &b;
  }
  return nullptr;
}

}  // namespace

struct slab_debug::record {
  owner allocated;
  owner freed;
};

bool slab_debug::asked_for(std::string_view name) noexcept {
  return named_in_environment("FOREBAY_SLAB_DEBUG", name);
}

slab_debug::slab_debug(std::size_t object_bytes, std::size_t alignment, bool fill) noexcept
    : object_bytes_(object_bytes),
      left_(alignment),
      record_offset_(round_up(object_bytes + least_right_bytes, alignof(record))),
      stride_(round_up(left_ + record_offset_ + sizeof(record), alignment)),
      fill_(fill) {}

slab_debug::record& slab_debug::record_of(const std::byte* object) const noexcept {
  return *reinterpret_cast<record*>(const_cast<std::byte*>(object) + record_offset_);
}

void slab_debug::set_red_zones(std::byte* object, std::byte value) const noexcept {
  std::fill_n(object - left_, left_, value);
  std::fill(object + object_bytes_, object + record_offset_, value);
}

void slab_debug::make(std::byte* object) const noexcept {
  new (&record_of(object)) record;
  set_red_zones(object, free_red);
  if (!fill_) return;
  std::fill_n(object, object_bytes_ - 1, free_fill);
  object[object_bytes_ - 1] = end_fill;
}

[[gnu::noinline]] void slab_debug::note_allocation(std::byte* object) const noexcept {
  record_of(object).allocated = owner_now();
  set_red_zones(object, used_red);
  if (fill_) std::fill_n(object, object_bytes_, new_fill);
}

[[gnu::noinline]] void slab_debug::note_free(std::byte* object) const noexcept {
  record_of(object).freed = owner_now();
  set_red_zones(object, free_red);
  if (!fill_) return;
  std::fill_n(object, object_bytes_ - 1, free_fill);
  object[object_bytes_ - 1] = end_fill;
}

std::optional<slab_debug::damage> slab_debug::find_damage(const std::byte* object,
                                                          bool in_use) const noexcept {
  const std::byte red = in_use ? used_red : free_red;
  if (const std::byte* at = first_other({object - left_, left_}, red)) {
    return damage{"write before the object (left red zone)", at, red};
  }
  if (const std::byte* at =
          first_other({object + object_bytes_, record_offset_ - object_bytes_}, red)) {
    return damage{"write behind the object (right red zone)", at, red};
  }
  if (in_use || !fill_) return std::nullopt;
  if (const std::byte* at = first_other({object, object_bytes_ - 1}, free_fill)) {
    return damage{"write to a free object", at, free_fill};
  }
  const std::byte* const last = object + object_bytes_ - 1;
  if (*last != end_fill) return damage{"write to a free object", last, end_fill};
  return std::nullopt;
}

std::string slab_debug::describe_owners(const std::byte* object) const {
  const record& r = record_of(object);
  symbolizer names;
  return describe_owner("last allocated", r.allocated, names) +
         describe_owner("last freed", r.freed, names);
}

std::string slab_debug::describe(const damage& d) {
  return fmt::format("  the byte at {} is {:02x} instead of {:02x}\n",
                     static_cast<const void*>(d.at), std::to_integer<unsigned>(*d.at),
                     std::to_integer<unsigned>(d.expected));
}

}  // namespace forebay
