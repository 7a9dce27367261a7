// The miss-ratio curve of a load: what share of its accesses a cache of each size would have
// missed, had it always given up the least recently used page. Estimated while the load runs, from
// a sample of its pages and in fixed memory.
//
//   access ─> hash ── below the threshold? ── no: nothing
//                            │ yes
//                            v
//        table: hash ─> place in the order of last use     bitmap of the places that are taken
//                            │                                          │
//                            └── distance: taken places behind it <─────┘
//                                   └─> histogram of distances / rate ─> curve
//
// The algorithm is SHARDS with a fixed size (Waldspurger et al., "Efficient MRC Construction with
// SHARDS", FAST '15). A page is in the sample if the hash of its number lies below a threshold, so
// all accesses to a page are seen or none. Between two accesses to one page as many different pages
// were used as there are sampled ones among them, divided by the rate of the sample: its reuse
// distance, which is the size that an LRU cache must have to hit. When the sample would hold more
// than pages_max pages, the threshold sinks, the pages above it go, and what was counted so far is
// scaled down with it. That some pages are used far more than others makes the sample's share of
// the accesses differ from its share of the pages: the difference is added to the nearest distance
// (SHARDS-adj).
//
// Places in the order of last use are given out one after the other; when there are no more, the
// pages are numbered anew. How many places behind one are taken is counted in the bitmap, 512 at a
// time; it is 8 KiB at the usual size, so it stays in the first-level cache.
//
// Cost of a sampled access: 25 to 60 ns, as the table is in the caches; of memory: see bytes(), 269
// KiB at the usual size.
//
// Error: on traces of databases, virtual machines and file systems (docs/miss-ratios.md) the mean
// over all sizes is below 0.01. It is largest for caches of less than a hundredth of the pages.
//
// Invariants: a hash is in the table exactly if its place's bit is set; every hash in the table is
// below the threshold; taken_[b] is the number of bits set among the 512 of b; places from
// next_place_ on are free.
//
// Guard: its owner's lock.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

namespace forebay {

class miss_ratio_curve {
 public:
  struct options {
    std::uint32_t pages_max = 16384;  // in the sample; a power of two, 512 to 16,384
    double rate = 1;                  // of the pages, to begin with; above 0, at most 1
  };

  // Null without memory.
  static std::unique_ptr<miss_ratio_curve> create(const options& opts) noexcept;

  // A page's number as it is sampled by; different numbers have different hashes. The finalizer of
  // SplitMix64 (Steele et al., OOPSLA '14), which tells neighbours apart in every bit, without its
  // last step.
  static constexpr std::uint64_t hash(std::uint64_t key) noexcept {
    key = (key ^ (key >> 30)) * 0xbf58476d1ce4e5b9;
    return (key ^ (key >> 27)) * 0x94d049bb133111eb;
  }
  // Whether access() has a use for it. The threshold sinks in access() and thin().
  static constexpr bool is_sampled(std::uint64_t hash, std::uint32_t threshold) noexcept {
    return hash >> 32 < threshold;
  }
  std::uint32_t threshold() const noexcept { return threshold_; }
  // The share of all pages that is in the sample.
  double rate() const noexcept { return static_cast<double>(threshold_) / 0x1p32; }

  // An access to the page with this hash; nothing if that is not in the sample.
  void access(std::uint64_t hash) noexcept;

  // Takes half of the pages out of the sample.
  void thin() noexcept;

  // Forgets everything, and has a sample of this rate from now on.
  void start_anew(double rate, std::uint64_t references) noexcept;

  // Gives what was counted so far, as far as it counts still, this weight, 0 to 1. `references`,
  // here and below: all accesses ever, in the sample or not.
  void age(double weight, std::uint64_t references) noexcept;

  struct point {
    std::uint64_t pages;  // of a cache
    double miss_ratio;    // of an access, 0 to 1; never more for a larger cache
  };

  // The share of misses for a cache of so many pages, at least 1; 1 as long as nothing was seen.
  double miss_ratio(std::uint64_t pages, std::uint64_t references) const noexcept;
  // The whole curve, in sizes that grow by 3% to 6% from one page on, up to where a larger cache
  // would not have missed less; empty as long as nothing was seen. Throws std::bad_alloc.
  std::vector<point> points(std::uint64_t references) const;

  std::uint32_t pages() const noexcept { return pages_; }        // in the sample now
  std::uint64_t accesses() const noexcept { return accesses_; }  // that were sampled, ever
  std::size_t bytes() const noexcept;                            // that it takes

 private:
  static constexpr unsigned place_bits = 17;  // of an entry of the table; the rest is of the hash
  static constexpr std::uint64_t place_mask = (1u << place_bits) - 1;
  static constexpr std::uint32_t pages_limit = 1u << 14;
  static constexpr std::uint32_t block_places = 512;
  static constexpr std::uint32_t blocks_limit = 4 * pages_limit / block_places;
  static constexpr unsigned sub_bits = 4;  // as in base/stats.h: 16 buckets for each power of two
  static constexpr unsigned bucket_count = (41 - sub_bits) << sub_bits;  // up to 2^40 pages

  miss_ratio_curve(const options& opts, std::unique_ptr<std::uint64_t[]> table,
                   std::unique_ptr<std::uint64_t[]> bitmap) noexcept;

  static std::uint32_t threshold_of(double rate) noexcept;
  static unsigned bucket_of(std::uint64_t distance) noexcept;
  static double bucket_begin(unsigned bucket) noexcept;

  std::uint32_t slot_of(std::uint64_t hash) const noexcept {
    return static_cast<std::uint32_t>(hash >> place_bits) & (2 * pages_max_ - 1);
  }
  std::uint32_t place_count() const noexcept { return 4 * pages_max_; }
  void take_place(std::uint32_t place) noexcept;
  void free_place(std::uint32_t place) noexcept;
  std::uint32_t taken_behind(std::uint32_t place) const noexcept;
  void number_anew() noexcept;
  void lower(std::uint32_t threshold) noexcept;
  void erase_slot(std::uint32_t slot) noexcept;
  double expected(std::uint64_t references) const noexcept;

  const std::uint32_t pages_max_;
  // Of twice pages_max_ slots, open addressing: upper bits of the hash, and the place plus one; 0
  // is free.
  const std::unique_ptr<std::uint64_t[]> table_;
  const std::unique_ptr<std::uint64_t[]> bitmap_;  // of place_count() bits
  std::array<std::uint32_t, blocks_limit> taken_{};
  std::uint32_t next_place_ = 0;
  std::uint32_t pages_ = 0;
  std::uint32_t threshold_;
  std::uint64_t accesses_ = 0;

  // Below: in accesses of the sample as it is now; what was counted at a higher rate is scaled.
  std::array<double, bucket_count> distances_{};
  double first_ = 0;  // accesses to pages that had not been in the sample
  // All accesses: what counts still of those before the last age(), and how many there were then.
  double aged_references_ = 0;
  std::uint64_t references_then_ = 0;
};

}  // namespace forebay
