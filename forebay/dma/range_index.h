// Ranges of addresses in the order of their starts, to find those that overlap: for the checks of
// domains (debug.h), not for fast paths.
//
//    | 0x1000-0x1fff a | 0x1800-0x18ff b | 0x4000-0x4fff c | …      one sorted array
//
// A search costs a binary one and a look at each range that begins within the longest one's reach;
// an insertion moves what is behind it. Ranges may overlap and be equal. A range belongs to a
// space, of which there are 2^32, and overlaps only those of its own. The owner's lock guards it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace forebay {

template <typename T>
class range_index {
 public:
  struct range {
    std::uint64_t first = 0;
    std::uint64_t last = 0;  // inclusive, not below `first`
    T* of = nullptr;
    std::uint32_t space = 0;
    std::uint32_t part = 0;  // which one of its several
  };

  std::size_t size() const noexcept { return size_; }

  // Makes room for so many more; false if there is no memory.
  bool reserve(std::size_t more) noexcept {
    if (more <= capacity_ - size_) return true;
    const std::size_t capacity = std::max(capacity_ * 2, size_ + more);
    std::unique_ptr<range[]> bigger(new (std::nothrow) range[capacity]);
    if (bigger == nullptr) return false;
    std::copy_n(ranges_.get(), size_, bigger.get());
    ranges_ = std::move(bigger);
    capacity_ = capacity;
    return true;
  }

  // There must be room.
  void insert(const range& r) noexcept {
    range* const at = std::upper_bound(begin(), end(), r, before);
    std::move_backward(at, end(), end() + 1);
    *at = r;
    ++size_;
    longest_ = std::max(longest_, r.last - r.first);
  }

  // Takes out one range that equals `r`, if there is one.
  void erase(const range& r) noexcept {
    for (range* i = std::lower_bound(begin(), end(), r, before); i != end() && !before(r, *i);
         ++i) {
      if (i->of != r.of || i->part != r.part) continue;
      std::move(i + 1, end(), i);
      if (--size_ == 0) longest_ = 0;
      return;
    }
  }

  // Calls `look(range)` for each that has an address in [first, last], by rising starts, until it
  // returns false.
  template <typename Look>
  void overlapping(std::uint32_t space, std::uint64_t first, std::uint64_t last,
                   Look look) const noexcept {
    const range from{.first = first - std::min(first, longest_), .space = space};
    const range* i = std::lower_bound(begin(), end(), from, before);
    for (; i != end() && i->space == space && i->first <= last; ++i) {
      if (i->last >= first && !look(*i)) return;
    }
  }

 private:
  static bool before(const range& a, const range& b) noexcept {
    return a.space != b.space ? a.space < b.space : a.first < b.first;
  }
  range* begin() const noexcept { return ranges_.get(); }
  range* end() const noexcept { return ranges_.get() + size_; }

  std::unique_ptr<range[]> ranges_;
  std::size_t size_ = 0;
  std::size_t capacity_ = 0;
  std::uint64_t longest_ = 0;  // no range is longer than this + 1
};

}  // namespace forebay
