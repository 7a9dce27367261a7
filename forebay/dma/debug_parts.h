// What debug.cc and debug_sync.cc share. Not for others.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <string_view>
#include <utility>

#include "forebay/dma/debug.h"
#include "forebay/os/mutex.h"

namespace forebay {

// The one lock, and under it the pieces of all mappings of all checked domains by the CPU's
// addresses.
extern mutex dma_records_lock;
range_index<dma_mapping>& dma_records() noexcept;
// This thread holds the lock: a fault that happens then must not wait for it.
extern constinit thread_local bool holds_dma_records_lock;

std::string_view to_string(dma_direction d) noexcept;
std::string_view to_string(dma_kind k) noexcept;

class FOREBAY_SCOPED_CAPABILITY dma_debug::held {
 public:
  held() FOREBAY_ACQUIRE(dma_records_lock) {
    dma_records_lock.lock();
    holds_dma_records_lock = true;
  }
  ~held() FOREBAY_RELEASE() {
    holds_dma_records_lock = false;
    dma_records_lock.unlock();
  }
  held(const held&) = delete;
  held& operator=(const held&) = delete;
};

// What was asked for.
struct dma_debug::call {
  dma_segment segment;
  dma_direction direction;
  dma_kind kind;
  const std::source_location& where;

  // Of a part of a single mapping.
  static call of_part(const dma_segment& s, std::uint32_t offset, std::uint32_t length,
                      dma_direction d, const std::source_location& where) noexcept {
    return {part_of(s, offset, length), d, dma_kind::single, where};
  }
};

// A line of text that is cut off where it gets too long.
class report_line {
 public:
  template <typename... Arguments>
  void add(fmt::format_string<Arguments...> format, Arguments&&... arguments) noexcept {
    const auto end = fmt::format_to_n(text_.data() + size_, text_.size() - 1 - size_, format,
                                      std::forward<Arguments>(arguments)...);
    size_ = std::min(size_ + end.size, text_.size() - 1);
  }
  void add(const dma_segment& s) noexcept {
    add("address {:#x}, length {}", to_number(s.address), s.length);
    if (s.region != dma_segment::no_region) add(", region {}", s.region);
  }
  void add(const std::source_location& where) noexcept {
    add("{}:{}", where.file_name(), where.line());
  }
  std::string_view text() const noexcept { return {text_.data(), size_}; }
  void print() noexcept {
    text_[size_] = '\n';
    std::fwrite(text_.data(), 1, size_ + 1, stderr);
  }

 private:
  std::array<char, 1024> text_;
  std::size_t size_ = 0;
};

}  // namespace forebay
