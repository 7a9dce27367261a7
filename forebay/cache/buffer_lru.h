// The buffers that each CPU used last, in front of the look-up of their pages: Linux's bh_lrus.
//
//    CPU 0: | b 7 | b 3 | … 16 buffers, the most recent first |     refs(): 1 of the index
//    CPU 1: | b 3 | b 9 | …                                   |       + (1 + lendable) for each
//    place
//
// A buffer that is looked for is taken from the CPU's array if it is there; if not, it is looked up
// and becomes the first, and the last drops off. So the arrays need no trimming, and nobody but
// their own CPU has anything to do with them until they are emptied: when the cache has nothing
// else to evict, when a device is invalidated, when a page is to have blocks of another size.
//
// A hit takes no locked instruction. Whoever puts a buffer into an array takes a thousand
// references of its page at once: one for the place, the others to be lent. A use that is found in
// the array is one of them, `lent` counts them, and a use that ends on that CPU goes back there.
// References of a page are all alike, so it does not matter which use took which: a use that ends
// where its buffer has no place any more is a reference given back to the page. When the buffer
// drops off, the place gives back what it has not lent, and what is lent are then ordinary
// references.
//
// So while a buffer has a place its page has more than the index's reference: it cannot be evicted
// and its buffers cannot go. Once it has none the page's count is exact, and the protocol that
// freezes it (memory/page.h) sees every user.
//
// Invariant of a place: of its 1 + lendable references, 1 and lendable - lent have not gone to a
// user, nor been given back to the page.
//
// Guards: a CPU's array belongs to who holds its slot (os/cpu_lock.h); the counts of hits and
// misses may be read by anybody. A slot is held for a few instructions and the look-up, which takes
// no lock. Who finds it busy does without the array.
#pragma once

#include <array>
#include <atomic>
#include <bit>
#include <cstdint>
#include <utility>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include "forebay/base/stats.h"
#include "forebay/cache/buffer_head.h"
#include "forebay/os/cpu_lock.h"

namespace forebay {

// What the arrays are made of; the explorer has smaller ones, and buffers of its own.
struct buffer_lru_traits {
  using buffer = buffer_head;
  template <typename T>
  using slots = cpu_locked<T>;
  static constexpr unsigned places = 16;
  static constexpr std::uint32_t lendable = 1000;

  static bool is(const buffer& b, std::uint64_t block, std::uint32_t size_bytes) noexcept {
    return b.block_number == block && b.size_bytes == size_bytes;
  }
  static void put(buffer& b, std::uint32_t references) noexcept {
    page& p = *b.frame;
    if (p.refs().put(references)) release_page(p);
  }
  // Its page is worth keeping for a while.
  static void touch(const buffer& b) noexcept { b.frame->touch(); }
  static bool same_page(const buffer& a, const buffer& b) noexcept { return a.frame == b.frame; }
};

template <typename Traits>
class basic_buffer_lru {
 public:
  using buffer = typename Traits::buffer;
  static constexpr unsigned places = Traits::places;  // of each array, at most 16
  static constexpr std::uint32_t lendable = Traits::lendable;
  static constexpr std::uint32_t no_place = UINT32_MAX;

  // One reference to a buffer's page, null if there is no such buffer.
  struct use {
    buffer* b = nullptr;
    std::uint32_t place = no_place;  // where it was lent: a hint
  };

  basic_buffer_lru() noexcept = default;
  ~basic_buffer_lru() { invalidate(); }
  basic_buffer_lru(const basic_buffer_lru&) = delete;
  basic_buffer_lru& operator=(const basic_buffer_lru&) = delete;

  // The buffer of a block of a space. find(n) looks it up: the buffer with n references taken, or
  // null; it must not wait.
  template <typename Find>
  use get(const void* space, std::uint64_t block, std::uint32_t size_bytes, Find find) noexcept {
    buffer* dropped = nullptr;
    std::uint32_t references = 0;
    use found;
    {
      const auto held = slots_.this_cpu();
      if (!held) [[unlikely]]
        return look_up(find);
      array& a = *held;
      const unsigned i = a.find(space, block, size_bytes);
      if (i != places) [[likely]] {
        if (a.lent[i] == lendable) [[unlikely]]
          return look_up(find);
        ++a.lent[i];
        a.again[i] = true;
        a.to_front(i);
        a.count(a.hits);
        return {a.buffers[i], i};
      }
      a.count(a.misses);
      found.b = find(1 + lendable);
      if (found.b == nullptr) return {};
      // The blocks of one page, one after the other, are one use of it.
      const buffer* const before = a.buffers[a.at(0)];
      if (before == nullptr || !Traits::same_page(*before, *found.b)) Traits::touch(*found.b);
      found.place = a.last();
      references = a.take_out(found.place, dropped);
      a.put_in(found.place, space, *found.b, block, size_bytes);
    }
    if (dropped != nullptr) Traits::put(*dropped, references);
    return found;
  }

  // The end of a use.
  void put(const use& u) noexcept {
    if (u.place != no_place) [[likely]] {
      const auto held = slots_.this_cpu();
      if (held && held->buffers[u.place] == u.b && held->lent[u.place] != 0) [[likely]] {
        --held->lent[u.place];
        return;
      }
    }
    Traits::put(*u.b, 1);
  }

  // Empties the arrays, or drops what is of one space from them; how many places had something. Any
  // thread; costs microseconds.
  unsigned invalidate(const void* space = nullptr) noexcept {
    unsigned n = 0;
    slots_.for_each_locked([&](array& a) noexcept {
      for (unsigned i = 0; i < places; ++i) {
        if (a.buffers[i] == nullptr || (space != nullptr && a.spaces[i] != space)) continue;
        buffer* dropped = nullptr;
        const std::uint32_t references = a.take_out(i, dropped);
        Traits::put(*dropped, references);
        ++n;
      }
      a.empty_last();
    });
    return n;
  }

  struct statistics_type {
    std::uint64_t hits = 0;
    std::uint64_t misses = 0;
  };
  statistics_type statistics() const noexcept {
    statistics_type s;
    slots_.for_each([&s](const array& a) noexcept {
      s.hits += value_of(a.hits);
      s.misses += value_of(a.misses);
    });
    return s;
  }

  // Blocks of the calling thread's array, the most recent first: for tests.
  std::array<buffer*, places> recent() noexcept {
    std::array<buffer*, places> all{};
    if (const auto held = slots_.this_cpu()) {
      for (unsigned i = 0; i < places; ++i) all[i] = held->buffers[held->at(i)];
    }
    return all;
  }

 private:
  template <typename Find>
  static use look_up(Find find) noexcept {
    buffer* const b = find(1u);
    if (b != nullptr) Traits::touch(*b);
    return {b, no_place};
  }

  // An array in order of its places; the order of use is a permutation of their numbers, four bits
  // each, the most recent lowest.
  struct array {
    std::uint64_t order = 0xfedcba9876543210;
    std::atomic<std::uint64_t> hits{0};
    std::atomic<std::uint64_t> misses{0};
    alignas(16) std::array<std::uint32_t, 16> keys{};  // of what is there: a first look
    std::array<buffer*, places> buffers{};             // null: nothing is there
    std::array<const void*, places> spaces{};
    std::array<std::uint32_t, places> lent{};
    std::array<bool, places> again{};  // found here

    static std::uint32_t key_of(const void* space, std::uint64_t block,
                                std::uint32_t size_bytes) noexcept {
      const auto place = static_cast<std::uint32_t>(reinterpret_cast<std::uintptr_t>(space) >> 6);
      return static_cast<std::uint32_t>(block ^ block >> 32) ^ size_bytes << 18 ^ place << 8;
    }
    // A bit for each place that has this key.
    static std::uint32_t places_of(const std::array<std::uint32_t, 16>& keys,
                                   std::uint32_t key) noexcept {
#ifdef __SSE2__
      const __m128i wanted = _mm_set1_epi32(static_cast<int>(key));
      const auto equal = [&](unsigned i) noexcept {
        return _mm_cmpeq_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(&keys[i])), wanted);
      };
      const __m128i low = _mm_packs_epi32(equal(0), equal(4));
      const __m128i high = _mm_packs_epi32(equal(8), equal(12));
      return static_cast<std::uint32_t>(_mm_movemask_epi8(_mm_packs_epi16(low, high)));
#else
      std::uint32_t equal = 0;
      for (unsigned i = 0; i < 16; ++i) equal |= std::uint32_t{keys[i] == key} << i;
      return equal;
#endif
    }
    // relaxed: only the holder writes it.
    static void count(std::atomic<std::uint64_t>& n) noexcept {
      n.store(n.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);  // relaxed: above
    }

    unsigned at(unsigned rank) const noexcept {
      return static_cast<unsigned>(order >> (4 * rank)) & 15;
    }
    unsigned last() const noexcept { return at(places - 1); }

    // The place that has it, `places` if none.
    unsigned find(const void* space, std::uint64_t block, std::uint32_t size_bytes) const noexcept {
      const std::uint32_t key = key_of(space, block, size_bytes);
      unsigned i = at(0);
      if (keys[i] != key) {
        const std::uint32_t equal = places_of(keys, key) & ((2u << (places - 1)) - 1);
        if (equal == 0) return places;
        i = static_cast<unsigned>(std::countr_zero(equal));
      }
      const buffer* const b = buffers[i];
      const bool same = b != nullptr && spaces[i] == space && Traits::is(*b, block, size_bytes);
      return same ? i : places;
    }

    void to_front(unsigned i) noexcept {
      if (at(0) == i) return;
      // The lowest four bits that are i: of what is zero after the exclusive or, the lowest is
      // found exactly.
      constexpr std::uint64_t ones = 0x1111111111111111;
      const std::uint64_t x = order ^ (ones * i);
      const int shift = std::countr_zero((x - ones) & ~x & (ones << 3)) & ~3;
      const std::uint64_t below = order & ((1ull << shift) - 1);
      const std::uint64_t above = order >> shift >> 4 << 4 << shift;
      order = above | below << 4 | i;
    }

    void put_in(unsigned i, const void* space, buffer& b, std::uint64_t block,
                std::uint32_t size_bytes) noexcept {
      keys[i] = key_of(space, block, size_bytes);
      buffers[i] = &b;
      spaces[i] = space;
      lent[i] = 1;
      again[i] = false;
      to_front(i);
    }

    // Empties a place: what was there, and how many references it is to be given back with.
    std::uint32_t take_out(unsigned i, buffer*& was) noexcept {
      was = std::exchange(buffers[i], nullptr);
      if (was == nullptr) return 0;
      keys[i] = 0;
      if (again[i]) Traits::touch(*was);
      return 1 + lendable - std::exchange(lent[i], 0u);
    }

    // Moves empty places behind the others.
    void empty_last() noexcept {
      for (unsigned moved = 0, rank = places; rank-- > moved;) {
        const unsigned i = at(rank);
        if (buffers[i] == nullptr) continue;
        to_front(i);
        ++moved;
        ++rank;  // what came before it is at this rank now
      }
    }
  };

  typename Traits::template slots<array> slots_;
};

using buffer_lru = basic_buffer_lru<buffer_lru_traits>;

// A use of a buffer: holds it, and gives it back. Move-only; share() makes a second one. The
// cache that the buffer is in must outlive it, and so must the address space.
class bh_ref {
 public:
  bh_ref() noexcept = default;
  bh_ref(buffer_lru& lru, buffer_lru::use u) noexcept : use_(u), lru_(&lru) {}
  // Takes over a use that the caller counts.
  static bh_ref adopt(buffer_lru& lru, buffer_head& b) noexcept {
    return {lru, {&b, buffer_lru::no_place}};
  }

  bh_ref(bh_ref&& other) noexcept : use_(std::exchange(other.use_, {})), lru_(other.lru_) {}
  bh_ref& operator=(bh_ref&& other) noexcept {
    if (this != &other) {
      reset();
      use_ = std::exchange(other.use_, {});
      lru_ = other.lru_;
    }
    return *this;
  }
  ~bh_ref() { reset(); }

  bh_ref share() const noexcept {
    get_bh(*use_.b);
    return adopt(*lru_, *use_.b);
  }
  void reset() noexcept {
    if (use_.b != nullptr) lru_->put(std::exchange(use_, {}));
  }

  buffer_head* get() const noexcept { return use_.b; }
  buffer_head& operator*() const noexcept { return *use_.b; }
  buffer_head* operator->() const noexcept { return use_.b; }
  explicit operator bool() const noexcept { return use_.b != nullptr; }

 private:
  buffer_lru::use use_;
  buffer_lru* lru_ = nullptr;
};

}  // namespace forebay
