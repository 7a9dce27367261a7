// The parts of a large page, 4 KiB each, and what is known of every one of them.
//
//   frame 0: the head | frame 1 | frame 2 | frame 3 | frame 4  | frame 5   | …     64 KiB
//                       dirty     failed    io        io_ended   io_failed         16 bits of each
//
// Five sets of parts, each a bitmap in private_data of frames behind the head, which nobody else
// has a use for: so the state of the parts needs no memory of its own, and there is none to run out
// of. A page of 2 MiB has eight words of each set. What iomap_folio_state is in Linux (fs/iomap).
//
//   dirty      newer than the device; page_dirty is set exactly if there are any
//   failed     of the dirty ones, those whose last write failed; page_error likewise
//   io         being read, while the page is filled, or written: page_writeback is set
//   io_ended   of these, those whose bio has ended
//   io_failed  of these, those whose bio has failed
//
// Guards: dirty and failed change under the space's lock_ (and the page lock, but at the end of
// write-back); io changes under lock_ where it is write-back's, and under the page lock where the
// page is filled. The others belong to the thread that the bios of the page end on, and are empty
// otherwise.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

#include "forebay/base/assert.h"
#include "forebay/memory/page.h"

namespace forebay {

enum class part_set : unsigned { dirty, failed, io, io_ended, io_failed };

class page_parts {
 public:
  static constexpr unsigned set_count = 5;

  // Of a page of at least 8 frames, of which the caller has a reference.
  explicit page_parts(page& head) noexcept
      : head_(head), count_(head.frames()), words_((count_ + word_bits - 1) / word_bits) {
    FOREBAY_DCHECK(count_ > set_count * words_);
  }

  // Parts of the page.
  unsigned count() const noexcept { return count_; }

  // For a block that has just been made a page: all sets are empty.
  void make_empty() noexcept {
    for (unsigned i = 0; i < set_count * words_; ++i) word(i).store(nullptr, order);
  }

  // Puts [first, end) into a set; returns how many were not in it.
  unsigned add(part_set set, unsigned first, unsigned end) noexcept {
    return change(set, first, end, [](std::uint64_t w, std::uint64_t mask) { return w | mask; });
  }
  // Takes [first, end) out of a set; returns how many were in it.
  unsigned remove(part_set set, unsigned first, unsigned end) noexcept {
    return change(set, first, end, [](std::uint64_t w, std::uint64_t mask) { return w & ~mask; });
  }
  // Empties a set; returns how many were in it.
  unsigned clear(part_set set) noexcept { return remove(set, 0, count_); }
  // Makes a set equal to another one of the page.
  void copy(part_set from, part_set to) noexcept {
    for (unsigned w = 0; w < words_; ++w) store(to, w, load(from, w));
  }
  // Makes all sets equal to those of a page of the same size.
  void assign(const page_parts& from) noexcept {
    for (unsigned i = 0; i < set_count * words_; ++i)
      word(i).store(from.word(i).load(order), order);
  }

  bool has(part_set set, unsigned part) const noexcept {
    return (load(set, part / word_bits) >> part % word_bits & 1) != 0;
  }
  // Of [first, end), how many are in a set.
  unsigned count(part_set set, unsigned first, unsigned end) const noexcept {
    unsigned n = 0;
    for_each_word(first, end, [&](unsigned w, std::uint64_t mask) {
      n += static_cast<unsigned>(std::popcount(load(set, w) & mask));
    });
    return n;
  }
  unsigned count(part_set set) const noexcept { return count(set, 0, count_); }

  // The first part from `from` on that is in a set, or is not; count() if there is none.
  unsigned next(part_set set, unsigned from) const noexcept { return next(set, from, 0); }
  unsigned next_without(part_set set, unsigned from) const noexcept {
    return next(set, from, ~std::uint64_t{0});
  }

 private:
  static constexpr unsigned word_bits = 64;
  static_assert(sizeof(void*) == sizeof(std::uint64_t));
  // relaxed: the locks and the completions named above order what is done to the words; who looks
  // without them takes what he sees for a hint.
  static constexpr std::memory_order order = std::memory_order_relaxed;

  std::atomic<void*>& word(unsigned i) const noexcept { return (&head_)[1 + i].private_data; }
  std::uint64_t load(part_set set, unsigned w) const noexcept {
    return reinterpret_cast<std::uintptr_t>(
        word(static_cast<unsigned>(set) * words_ + w).load(order));
  }
  void store(part_set set, unsigned w, std::uint64_t value) noexcept {
    word(static_cast<unsigned>(set) * words_ + w).store(reinterpret_cast<void*>(value), order);
  }

  // Calls f(word, mask) for each word that [first, end) touches.
  template <typename F>
  static void for_each_word(unsigned first, unsigned end, F f) noexcept {
    while (first < end) {
      const unsigned w = first / word_bits;
      const unsigned low = first % word_bits;
      const unsigned n = std::min(end - first, word_bits - low);
      f(w, (~std::uint64_t{0} >> (word_bits - n)) << low);
      first += n;
    }
  }

  template <typename Change>
  unsigned change(part_set set, unsigned first, unsigned end, Change to) noexcept {
    unsigned changed = 0;
    for_each_word(first, end, [&](unsigned w, std::uint64_t mask) {
      const std::uint64_t was = load(set, w);
      const std::uint64_t is = to(was, mask);
      if (is == was) return;
      changed += static_cast<unsigned>(std::popcount(was ^ is));
      store(set, w, is);
    });
    return changed;
  }

  unsigned next(part_set set, unsigned from, std::uint64_t flip) const noexcept {
    while (from < count_) {
      const std::uint64_t left = (load(set, from / word_bits) ^ flip) >> from % word_bits;
      if (left != 0) return std::min(count_, from + static_cast<unsigned>(std::countr_zero(left)));
      from = (from / word_bits + 1) * word_bits;
    }
    return count_;
  }

  page& head_;
  const unsigned count_;
  const unsigned words_;
};

}  // namespace forebay
