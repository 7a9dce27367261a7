// One thread: not in the thread sanitizer's tree.
// Scatter-gather lists against a flat model: random pieces, limits and domains. The bytes that the
// device sees through the segments are those that the CPU sees through the list, in order; no
// segment exceeds a limit; none is cut where it need not be; and the domain is left as it was.

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <memory>
#include <random>
#include <vector>

#include "forebay/base/test_bytes.h"
#include "forebay/dma/identity_domain.h"
#include "forebay/dma/sg_list.h"
#include "sim/bounce_domain.h"
#include "sim/guest_domain.h"
#include "sim/iommu_domain.h"
#include "sim/simulated_umem_domain.h"

namespace forebay {
namespace {

constexpr std::size_t memory_bytes = 24 << 10;

// splitmix64 (Steele, Lea, Flood 2014).
class numbers {
 public:
  explicit numbers(std::uint64_t seed) : state_(seed) {}
  std::uint64_t next() {
    std::uint64_t z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
  }
  std::size_t below(std::size_t n) { return static_cast<std::size_t>(next() % n); }
  // Of each magnitude alike often: 1 to `most`.
  std::size_t size(std::size_t most) {
    std::size_t bits = 0;
    while (std::size_t{2} << bits <= most) ++bits;
    return std::min(most, 1 + below(std::size_t{2} << below(bits + 1)));
  }
  bool chance(std::size_t in) { return below(in) == 0; }

 private:
  std::uint64_t state_;
};

// Failures are counted and described once, for loops of millions.
class verdict {
 public:
  void expect(bool good, const char* what) {
    if (!good && wrong_.empty()) wrong_ = what;
  }
  const std::string& wrong() const { return wrong_; }

 private:
  std::string wrong_;
};
#define CHECK_THAT(condition) v.expect(condition, #condition)

struct world {
  world() : owner(new(std::align_val_t{memory_bytes_align}) block), memory(owner->bytes) {}

  static constexpr std::size_t memory_bytes_align = 4096;
  struct alignas(memory_bytes_align) block {
    std::array<std::byte, memory_bytes> bytes;
  };
  std::unique_ptr<block> owner;
  std::span<std::byte> memory;
  sg_array<1024> chunks;
};

dma_limits random_limits(numbers& r) {
  dma_limits l;
  if (r.chance(2)) l.max_segment_bytes = static_cast<std::uint32_t>(r.size(8192));
  if (r.chance(2)) l.boundary_mask = (std::uint64_t{1} << r.below(14)) - 1;
  if (r.chance(4)) l.max_segments = static_cast<std::uint32_t>(r.size(64));
  if (r.chance(4)) l.max_mapping_bytes = static_cast<std::uint32_t>(r.size(8192));
  // So that no list takes more chunks than there are.
  if (l.max_segment_bytes < 16) l.max_segment_bytes = 16;
  if (l.boundary_mask < 15) l.boundary_mask = 15;
  if (l.max_mapping_bytes < 16) l.max_mapping_bytes = 16;
  return l;
}

std::unique_ptr<simulated_domain> random_domain(numbers& r, world& w) {
  const std::size_t half = r.size(memory_bytes - 1);
  switch (r.below(5)) {
    case 0:
      return std::make_unique<simulated_umem_domain>(w.memory, 1u << (6 + r.below(8)), r.chance(2));
    case 1: {
      // At times side by side for the guest as well, but two regions all the same.
      const std::uint64_t first = r.below(1 << 20);
      const std::uint64_t second = r.chance(2) ? first + half : std::uint64_t{1} << 32;
      return std::make_unique<guest_domain>(std::vector<guest_domain::region>{
          {first, w.memory.first(half)}, {second, w.memory.subspan(half)}});
    }
    case 2:
      return std::make_unique<bounce_domain>(bounce_domain::options{
          .limits = random_limits(r), .pool_bytes = std::size_t{2048} << r.below(10)});
    default:
      return std::make_unique<iommu_domain>(
          iommu_domain::options{.limits = random_limits(r),
                                .iova_bytes = std::size_t{64 << 10} << r.below(6),
                                .max_mappings = r.chance(4) ? r.size(64) : SIZE_MAX,
                                .huge_pages = r.chance(2),
                                .lazy_unmaps = r.below(3)});
  }
}

bool is_clean(const simulated_domain& d) {
  if (const auto* i = dynamic_cast<const iommu_domain*>(&d)) {
    const auto s = i->stats();
    return s.mappings == 0 && s.pages == 0 && s.huge_pages == 0 && s.strange_unmaps == 0;
  }
  if (const auto* b = dynamic_cast<const bounce_domain*>(&d))
    return b->mappings() == 0 && b->strange_calls() == 0;
  return true;
}

// Disjoint pieces of the memory, in random order; neighbours stay together at times.
std::vector<std::span<std::byte>> random_pieces(numbers& r, std::span<std::byte> memory) {
  std::vector<std::span<std::byte>> pieces;
  const std::size_t longest = r.size(8192);
  const bool by_blocks = r.chance(2);
  while (!memory.empty() && pieces.size() < 100) {
    std::size_t n = r.size(longest);
    if (by_blocks) n = (n + 511) / 512 * 512;
    n = std::min(n, memory.size());
    if (!r.chance(5)) pieces.push_back(memory.first(n));  // else: a gap
    memory = memory.subspan(n);
  }
  for (std::size_t i = pieces.size(); i > 1; --i) {
    if (r.chance(2)) std::swap(pieces[i - 1], pieces[r.below(i)]);
  }
  return pieces;
}

using flat_model = std::vector<std::byte*>;

void add_to(flat_model& model, std::span<std::byte> piece) {
  for (std::byte& b : piece) model.push_back(&b);
}

bool same(const sg_list& list, const flat_model& model) {
  std::size_t at = 0;
  for (const std::span<std::byte> piece : list.pieces()) {
    if (piece.empty() || piece.size() > model.size() - at) return false;
    for (std::byte& b : piece) {
      if (&b != model[at++]) return false;
    }
  }
  return at == model.size() && list.bytes() == at;
}

// A list made by all that can make one, and its model.
void build(numbers& r, verdict& v, std::span<const std::span<std::byte>> pieces, sg_list& list,
           flat_model& model) {
  for (std::size_t i = 0; i < pieces.size();) {
    if (r.chance(3)) {
      std::array<iovec, 8> several;
      const std::size_t n = std::min(pieces.size() - i, r.size(several.size()));
      for (std::size_t k = 0; k < n; ++k, ++i) {
        several[k] = {pieces[i].data(), pieces[i].size()};
        add_to(model, pieces[i]);
      }
      CHECK_THAT(list.append(std::span<const iovec>(several).first(n)).has_value());
    } else {
      add_to(model, pieces[i]);
      CHECK_THAT(list.append(pieces[i++]).has_value());
    }
    if (r.chance(6) && !list.empty()) {
      const std::size_t at = r.below(list.bytes() + 1);
      auto rest = list.split(at);
      CHECK_THAT(rest && list.bytes() == at);
      if (!rest) return;
      if (r.chance(2)) {
        CHECK_THAT(list.append(std::move(*rest)).has_value());
      } else {  // the halves change places
        CHECK_THAT(rest->append(std::move(list)).has_value());
        list = std::move(*rest);
        std::rotate(model.begin(), model.begin() + static_cast<long>(at), model.end());
      }
    }
    if (r.chance(10)) {
      const std::size_t n = r.below(list.bytes() + 1);
      CHECK_THAT(list.skip(n).has_value());
      model.erase(model.begin(), model.begin() + static_cast<long>(n));
    }
  }
  CHECK_THAT(same(list, model));
}

void check_segments(verdict& v, const sg_mapping& m, std::size_t bytes) {
  const dma_limits& limits = m.domain().limits();
  std::size_t sum = 0;
  const auto* guest = dynamic_cast<const guest_domain*>(&m.domain());
  const dma_segment* before = nullptr;
  for (const dma_segment& s : m.segments()) {
    sum += s.length;
    CHECK_THAT(keeps_to(s, limits));
    CHECK_THAT(guest == nullptr || guest->holds(s));
    // Cut only where it had to be.
    if (before != nullptr && before->region == s.region &&
        before->address + before->length == s.address) {
      CHECK_THAT(before->length == limits.max_segment_bytes ||
                 (to_number(s.address) & limits.boundary_mask) == 0);
    }
    before = &s;
  }
  CHECK_THAT(sum == bytes);
  CHECK_THAT(m.segments().size() <= limits.max_segments);
}

std::vector<std::byte> random_bytes(numbers& r, std::size_t n) {
  std::vector<std::byte> b(n);
  for (std::byte& x : b) x = static_cast<std::byte>(r.next());
  return b;
}

// The device reads or writes all segments.
bool device_reads_all(const sg_mapping& m, simulated_domain& d, std::span<std::byte> out) {
  for (const dma_segment& s : m.segments()) {
    if (!d.device_read(s.address, out.first(s.length))) return false;
    out = out.subspan(s.length);
  }
  return true;
}
bool device_writes_all(const sg_mapping& m, simulated_domain& d, std::span<const std::byte> data) {
  for (const dma_segment& s : m.segments()) {
    if (!d.device_write(s.address, data.first(s.length))) return false;
    data = data.subspan(s.length);
  }
  return true;
}

bool holds(const flat_model& model, std::span<const std::byte> data) {
  return std::ranges::equal(model, data, {}, [](const std::byte* b) { return *b; });
}

void transfer(numbers& r, verdict& v, sg_mapping& m, simulated_domain& d, const flat_model& model,
              std::vector<std::byte>& expected) {
  const std::size_t n = model.size();
  if (device_reads(m.direction())) {
    std::vector<std::byte> seen(n);
    CHECK_THAT(device_reads_all(m, d, seen));
    CHECK_THAT(seen == expected);
  }
  if (!device_writes(m.direction())) return;
  expected = random_bytes(r, n);
  CHECK_THAT(device_writes_all(m, d, expected));
  // A part is the CPU's for a while, and written to when the device will look again.
  const std::size_t offset = r.below(n);
  const std::size_t length = r.size(n - offset);
  auto view = m.sync_for_cpu(offset, length);
  CHECK_THAT(view.has_value());
  if (!view) return;
  std::vector<std::byte> part(length);
  CHECK_THAT(view->pieces().copy_to(part) == length);
  CHECK_THAT(same_bytes(part, expected.data() + offset));
  if (!device_reads(m.direction())) return;
  part = random_bytes(r, length);
  CHECK_THAT(view->pieces().copy_from(part) == length);
  std::ranges::copy(part, expected.begin() + static_cast<long>(offset));
}

// One random list; returns what was wrong.
std::string one_list(std::uint64_t seed, world& w, std::size_t& mapped) {
  numbers r(seed);
  verdict v;
  const auto pieces = random_pieces(r, w.memory.first(r.size(memory_bytes)));
  sg_list list(w.chunks);
  flat_model model;
  build(r, v, pieces, list, model);
  if (!v.wrong().empty()) return v.wrong();

  std::vector<std::byte> expected = random_bytes(r, model.size());
  CHECK_THAT(list.copy_from(expected) == model.size());
  CHECK_THAT(holds(model, expected));
  const auto d = random_domain(r, w);
  const auto direction = static_cast<dma_direction>(1 + r.below(3));
  auto m = std::move(list).map(*d, direction);
  if (m) {
    ++mapped;
    check_segments(v, *m, model.size());
    transfer(r, v, *m, *d, model, expected);
    list = std::move(*m).unmap();
  } else {
    CHECK_THAT(model.empty() || m.error() == std::errc::no_space_on_device ||
               m.error() == std::errc::message_size);
  }
  CHECK_THAT(same(list, model));
  CHECK_THAT(holds(model, expected));
  CHECK_THAT(d->faults() == 0);
  CHECK_THAT(is_clean(*d));
  return v.wrong();
}

TEST(SgProperty, RandomListsAgainstTheFlatModel) {
  const bool stress = std::getenv("FOREBAY_STRESS") != nullptr;
  const std::uint64_t lists = stress ? 1'000'000 : 20'000;
  world w;
  std::size_t mapped = 0;
  for (std::uint64_t seed = 1; seed <= lists; ++seed)
    ASSERT_EQ(one_list(seed, w, mapped), "") << "seed " << seed;
  // Failures are wanted as well, but not mostly.
  EXPECT_GT(mapped, lists / 2);
  EXPECT_LT(mapped, lists * 95 / 100);
}

// The same by generated values that are made smaller when one fails: cuts, joins, and limits on an
// identity domain.
RC_GTEST_PROP(SgProperty, SplitListsMapToTheSameBytes, ()) {
  const auto lengths =
      *rc::gen::container<std::vector<std::size_t>>(rc::gen::inRange<std::size_t>(1, 700));
  const auto gaps =
      *rc::gen::container<std::vector<bool>>(lengths.size(), rc::gen::arbitrary<bool>());
  std::vector<std::byte> memory(701 * (lengths.size() + 1));
  sg_array<256> chunks;
  sg_list list(chunks);
  flat_model model;
  std::size_t at = 0;
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    const auto piece = std::span(memory).subspan(at, lengths[i]);
    RC_ASSERT(list.append(piece).has_value());
    add_to(model, piece);
    at += lengths[i] + (gaps[i] ? 1 : 0);
  }
  const auto cut = *rc::gen::inRange<std::size_t>(0, list.bytes() + 1);
  auto rest = list.split(cut);
  RC_ASSERT(rest.has_value());
  const flat_model first(model.begin(), model.begin() + static_cast<long>(cut));
  const flat_model second(model.begin() + static_cast<long>(cut), model.end());
  RC_ASSERT(same(list, first) && same(*rest, second));

  dma_limits limits;
  limits.max_segment_bytes = *rc::gen::inRange<std::uint32_t>(50, 1000);
  limits.boundary_mask = (std::uint64_t{1} << *rc::gen::inRange(7, 12)) - 1;
  identity_domain domain("property", limits);
  for (sg_list* part : {&list, &*rest}) {
    const flat_model& expected = part == &list ? first : second;
    auto m = std::move(*part).map(domain, dma_direction::to_device);
    RC_ASSERT(m.has_value() == !expected.empty());
    if (!m) continue;
    verdict v;
    check_segments(v, *m, expected.size());
    RC_ASSERT(v.wrong().empty());
    std::size_t byte = 0;
    for (const dma_segment& s : m->segments()) {
      for (std::uint32_t i = 0; i < s.length; ++i)
        RC_ASSERT(to_number(s.address + i) == std::bit_cast<std::uintptr_t>(expected[byte++]));
    }
  }
}

}  // namespace
}  // namespace forebay
