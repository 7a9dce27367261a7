// What left a cache of late: a fixed table of fingerprints, two bytes for each entry it remembers.
//
//   bucket, a cache line:  [ newest | ... | oldest ]  32 fingerprints of 16 bits, 0 is none
//
// A key's hash chooses its bucket and its fingerprint. Remembering puts it before the others of the
// bucket, and what falls off at the end is forgotten; so the table as a whole forgets in the order
// of age, but for the differences between buckets. A key that was never seen is taken for a
// remembered one about once in 2,000 times: who asks has to be able to live with that.
//
// It stands for the ghost queues of ARC, S3-FIFO and others (Einziger et al., "TinyLFU", 2017, and
// the S3-FIFO paper, SOSP '23, keep fingerprints for the same reason: space).
//
// Guard: its owner's lock, but for the number of buckets and where they are, which never change.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>

namespace forebay {

class eviction_history {
 public:
  // To remember up to `capacity_max` keys. Without the memory it remembers none: see bytes().
  explicit eviction_history(std::uint64_t capacity_max) noexcept
      : buckets_((capacity_max + slots - 1) / slots),
        table_(buckets_ == 0 ? nullptr : new(std::nothrow) bucket[buckets_]()) {
    if (table_ == nullptr) buckets_ = 0;
    set_capacity(capacity_max);
  }

  // How many to remember from now on: what is given, and up to one more for each bucket.
  void set_capacity(std::uint64_t capacity) noexcept {
    if (buckets_ == 0) return;
    used_slots_ =
        static_cast<unsigned>(std::min<std::uint64_t>((capacity + buckets_ - 1) / buckets_, slots));
  }

  std::uint64_t bytes() const noexcept { return buckets_ * sizeof(bucket); }

  void remember(std::uint64_t key) noexcept {
    if (buckets_ == 0) return;
    const auto [b, mark] = find(key);
    std::memmove(&b->at[1], &b->at[0], sizeof(b->at) - sizeof(b->at[0]));
    b->at[0] = mark;
  }

  // A hint: the key will be asked for, or remembered. Needs no guard.
  void prefetch(std::uint64_t key) const noexcept {
    if (buckets_ != 0) __builtin_prefetch(find(key).in, 1);
  }

  // Whether the key is remembered; it is not any more then.
  bool recall(std::uint64_t key) noexcept {
    if (buckets_ == 0) return false;
    const auto [b, mark] = find(key);
    const auto end = b->at.begin() + used_slots_;
    const auto found = std::find(b->at.begin(), end, mark);
    if (found == end) return false;
    std::copy(found + 1, b->at.end(), found);
    b->at.back() = 0;
    return true;
  }

 private:
  static constexpr unsigned slots = 32;
  struct alignas(64) bucket {
    std::array<std::uint16_t, slots> at;  // the newest first
  };
  struct place {
    bucket* in;
    std::uint16_t mark;
  };

  // The finalizer of MurmurHash3 (Appleby): every bit of the key reaches every bit.
  static constexpr std::uint64_t mixed(std::uint64_t x) noexcept {
    x = (x ^ (x >> 33)) * 0xff51afd7ed558ccd;
    x = (x ^ (x >> 33)) * 0xc4ceb9fe1a85ec53;
    return x ^ (x >> 33);
  }

  place find(std::uint64_t key) const noexcept {
    const std::uint64_t h = mixed(key);
    const auto mark = static_cast<std::uint16_t>(h);
    // The upper half times the number of buckets, over 2^32: as even as a remainder, and cheaper.
    return {&table_[((h >> 32) * buckets_) >> 32], mark == 0 ? std::uint16_t{1} : mark};
  }

  std::uint64_t buckets_;
  unsigned used_slots_ = 0;
  std::unique_ptr<bucket[]> table_;
};

}  // namespace forebay
