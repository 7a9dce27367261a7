#include "forebay/cache/miss_ratio_curve.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <new>
#include <utility>

#include "forebay/base/assert.h"

namespace forebay {
namespace {

// Of the threshold, when the sample is full: so many pages are in it at least from then on.
constexpr std::uint32_t kept_of_8 = 7;

constexpr std::uint64_t bit_of(std::uint32_t place) noexcept { return 1ull << (place % 64); }

// How many accesses lie between two counts of them: below 0 if the later one leaves out some that
// the earlier one had, as estimates do that leave out those on their way to the curve.
double since(std::uint64_t now, std::uint64_t then) noexcept {
  return static_cast<double>(static_cast<std::int64_t>(now - then));
}

}  // namespace

std::unique_ptr<miss_ratio_curve> miss_ratio_curve::create(const options& opts) noexcept {
  FOREBAY_ASSERT(std::has_single_bit(opts.pages_max) && opts.pages_max >= block_places &&
                 opts.pages_max <= pages_limit && opts.rate > 0 && opts.rate <= 1);
  const std::size_t slots = 2 * std::size_t{opts.pages_max};
  std::unique_ptr<std::uint64_t[]> table(new (std::nothrow) std::uint64_t[slots]());
  std::unique_ptr<std::uint64_t[]> bitmap(new (std::nothrow)
                                              std::uint64_t[4 * opts.pages_max / 64]());
  if (table == nullptr || bitmap == nullptr) return nullptr;
  return std::unique_ptr<miss_ratio_curve>(
      new (std::nothrow) miss_ratio_curve(opts, std::move(table), std::move(bitmap)));
}

miss_ratio_curve::miss_ratio_curve(const options& opts, std::unique_ptr<std::uint64_t[]> table,
                                   std::unique_ptr<std::uint64_t[]> bitmap) noexcept
    : pages_max_(opts.pages_max),
      table_(std::move(table)),
      bitmap_(std::move(bitmap)),
      threshold_(threshold_of(opts.rate)) {}

std::uint32_t miss_ratio_curve::threshold_of(double rate) noexcept {
  return static_cast<std::uint32_t>(std::clamp<double>(rate * 0x1p32, 1, UINT32_MAX));
}

void miss_ratio_curve::start_anew(double rate, std::uint64_t references) noexcept {
  std::fill_n(table_.get(), 2 * pages_max_, 0);
  std::fill_n(bitmap_.get(), place_count() / 64, 0);
  taken_ = {};
  next_place_ = 0;
  pages_ = 0;
  threshold_ = threshold_of(rate);
  distances_ = {};
  first_ = 0;
  aged_references_ = 0;
  references_then_ = references;
}

std::size_t miss_ratio_curve::bytes() const noexcept {
  return sizeof *this + 2 * std::size_t{pages_max_} * sizeof(std::uint64_t) + place_count() / 8;
}

void miss_ratio_curve::take_place(std::uint32_t place) noexcept {
  bitmap_[place / 64] |= bit_of(place);
  ++taken_[place / block_places];
}

void miss_ratio_curve::free_place(std::uint32_t place) noexcept {
  bitmap_[place / 64] &= ~bit_of(place);
  --taken_[place / block_places];
}

// How many places above this one are taken.
std::uint32_t miss_ratio_curve::taken_behind(std::uint32_t place) const noexcept {
  const std::uint32_t block = place / block_places;
  std::uint32_t word = place / 64;
  // Two steps, for place % 64 may be 63.
  auto n = static_cast<std::uint32_t>(std::popcount(bitmap_[word] >> (place % 64) >> 1));
  const std::uint32_t words_end = (block + 1) * (block_places / 64);
  while (++word < words_end) n += static_cast<std::uint32_t>(std::popcount(bitmap_[word]));
  const std::uint32_t blocks_end = (next_place_ + block_places - 1) / block_places;
  for (std::uint32_t b = block + 1; b < blocks_end; ++b) n += taken_[b];
  return n;
}

// Moves the taken places together, in their order.
void miss_ratio_curve::number_anew() noexcept {
  // taken_ as sums: how many are taken before each block.
  std::uint32_t before = 0;
  for (std::uint32_t& t : taken_) before += std::exchange(t, before);
  for (std::uint32_t slot = 0; slot < 2 * pages_max_; ++slot) {
    std::uint64_t& entry = table_[slot];
    if (entry == 0) continue;
    const auto place = static_cast<std::uint32_t>(entry & place_mask) - 1;
    std::uint32_t word = place / block_places * (block_places / 64);
    std::uint32_t fresh = taken_[place / block_places];
    for (; word < place / 64; ++word) {
      fresh += static_cast<std::uint32_t>(std::popcount(bitmap_[word]));
    }
    fresh += static_cast<std::uint32_t>(std::popcount(bitmap_[word] & (bit_of(place) - 1)));
    entry = (entry & ~place_mask) | (fresh + 1);
  }
  std::fill_n(bitmap_.get(), place_count() / 64, 0);
  taken_ = {};
  next_place_ = pages_;
  for (std::uint32_t place = 0; place < pages_; ++place) take_place(place);
}

// Frees a slot of the table, and fills it with one that was put further on because of it.
void miss_ratio_curve::erase_slot(std::uint32_t slot) noexcept {
  const std::uint32_t mask = 2 * pages_max_ - 1;
  for (std::uint32_t at = slot;;) {
    at = (at + 1) & mask;
    if (table_[at] == 0) break;
    // Its own slot lies cyclically in (slot, at]: it is not moved before that.
    const std::uint32_t own = slot_of(table_[at]);
    if (((at - own) & mask) < ((at - slot) & mask)) continue;
    table_[slot] = table_[at];
    slot = at;
  }
  table_[slot] = 0;
}

// Pages whose hash is not below the threshold leave the sample.
void miss_ratio_curve::lower(std::uint32_t threshold) noexcept {
  const double share = static_cast<double>(threshold) / threshold_;
  threshold_ = threshold;
  for (std::uint32_t slot = 0; slot < 2 * pages_max_;) {
    const std::uint64_t entry = table_[slot];
    if (entry == 0 || is_sampled(entry, threshold)) {
      ++slot;
      continue;
    }
    free_place(static_cast<std::uint32_t>(entry & place_mask) - 1);
    --pages_;
    erase_slot(slot);  // and looks at what has moved there
  }
  for (double& d : distances_) d *= share;
  first_ *= share;
}

void miss_ratio_curve::thin() noexcept { lower(std::max(threshold_ / 2, 1u)); }

void miss_ratio_curve::access(std::uint64_t hash) noexcept {
  if (!is_sampled(hash, threshold_)) return;
  ++accesses_;
  if (next_place_ == place_count()) number_anew();
  const std::uint32_t mask = 2 * pages_max_ - 1;
  std::uint32_t slot = slot_of(hash);
  while (table_[slot] != 0 && ((table_[slot] ^ hash) & ~place_mask) != 0) slot = (slot + 1) & mask;
  if (table_[slot] != 0) {
    const auto place = static_cast<std::uint32_t>(table_[slot] & place_mask) - 1;
    const double distance = taken_behind(place) / rate();
    distances_[bucket_of(static_cast<std::uint64_t>(distance))] += 1;
    free_place(place);
  } else {
    first_ += 1;
    ++pages_;
  }
  take_place(next_place_);
  table_[slot] = (hash & ~place_mask) | ++next_place_;
  while (pages_ == pages_max_) {
    lower(static_cast<std::uint32_t>(std::uint64_t{threshold_} * kept_of_8 / 8));
  }
}

void miss_ratio_curve::age(double weight, std::uint64_t references) noexcept {
  aged_references_ = std::max(aged_references_ + since(references, references_then_), 0.0) * weight;
  references_then_ = references;
  for (double& d : distances_) d *= weight;
  first_ *= weight;
}

// Log-linear, as base/stats.h's.
unsigned miss_ratio_curve::bucket_of(std::uint64_t distance) noexcept {
  if (distance < (1u << sub_bits)) return static_cast<unsigned>(distance);
  const auto power = static_cast<unsigned>(std::bit_width(distance)) - 1;
  const auto sub = static_cast<unsigned>(distance >> (power - sub_bits)) & ((1u << sub_bits) - 1);
  return std::min(((power - sub_bits + 1) << sub_bits) | sub, bucket_count - 1);
}

double miss_ratio_curve::bucket_begin(unsigned bucket) noexcept {
  if (bucket < (1u << sub_bits)) return bucket;
  const unsigned shift = (bucket >> sub_bits) - 1;
  return std::ldexp((1u << sub_bits) | (bucket & ((1u << sub_bits) - 1)), static_cast<int>(shift));
}

// How many accesses a sample of this rate would have, if it had its share of them.
double miss_ratio_curve::expected(std::uint64_t references) const noexcept {
  return std::max(aged_references_ + since(references, references_then_), 0.0) * rate();
}

double miss_ratio_curve::miss_ratio(std::uint64_t pages, std::uint64_t references) const noexcept {
  double sampled = first_;
  for (const double d : distances_) sampled += d;
  const double all = expected(references);
  if (sampled == 0 || all == 0) return 1;
  // A cache of n pages hits at distances below n.
  double hits = all - sampled;
  for (unsigned b = 0; b < bucket_count; ++b) {
    const double begin = bucket_begin(b);
    if (begin >= static_cast<double>(pages)) break;
    const double inside = (static_cast<double>(pages) - begin) / (bucket_begin(b + 1) - begin);
    hits += distances_[b] * std::min(inside, 1.0);
  }
  return std::clamp(1 - hits / all, 0.0, 1.0);
}

std::vector<miss_ratio_curve::point> miss_ratio_curve::points(std::uint64_t references) const {
  std::vector<point> out;
  double sampled = first_;
  unsigned last = 0;
  for (unsigned b = 0; b < bucket_count; ++b) {
    sampled += distances_[b];
    if (distances_[b] != 0) last = b;
  }
  const double all = expected(references);
  if (sampled == 0 || all == 0) return out;
  double hits = all - sampled;
  for (unsigned b = 0; b <= last; ++b) {
    hits += distances_[b];
    out.push_back(
        {static_cast<std::uint64_t>(bucket_begin(b + 1)), std::clamp(1 - hits / all, 0.0, 1.0)});
  }
  return out;
}

}  // namespace forebay
