// page_index against std::map; exhaustion of its nodes; lookups while it changes.

#include "forebay/cache/page_index.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <random>
#include <set>
#include <thread>
#include <vector>

namespace forebay {
namespace {

std::unique_ptr<arena> make_arena(std::size_t bytes = 4u << 20) {
  auto a = arena::create({.bytes = bytes, .huge_pages = false});
  FOREBAY_ASSERT(a.has_value());
  return std::move(*a);
}

struct model_entry {
  page* frame;
  std::array<bool, 2> tags;
};
using model = std::map<std::uint64_t, model_entry>;

// The page that has the number, or the next one.
model::const_iterator page_at_or_behind(const model& m, std::uint64_t number) {
  auto at = m.upper_bound(number);
  if (at == m.begin()) return at;
  const auto before = std::prev(at);
  return before->first + before->second.frame->frames() > number ? before : at;
}

template <typename Wanted>
std::optional<std::uint64_t> next_in(const model& m, std::uint64_t from, std::uint64_t end,
                                     Wanted wanted) {
  for (auto at = page_at_or_behind(m, from); at != m.end() && at->first < end && from < end; ++at) {
    if (wanted(at->second)) return at->first;
  }
  return std::nullopt;
}

bool has_no_tag(const model_entry& e) { return !e.tags[0] && !e.tags[1]; }
bool is_above_leaves(const model_entry& e) { return e.frame->order >= 6; }

void check_next(const page_index& index, const model& m, std::uint64_t from, std::uint64_t end) {
  const auto agree = [&](const std::optional<page_index::found>& got, auto wanted) {
    const auto want = next_in(m, from, end, wanted);
    RC_ASSERT(got.has_value() == want.has_value());
    if (!want) return;
    RC_ASSERT(got->index == *want);
    RC_ASSERT(got->frame == m.at(*want).frame);
  };
  agree(index.next(from, end), [](const model_entry&) { return true; });
  agree(index.next_clean(from, end),
        [](const model_entry& e) { return has_no_tag(e) || is_above_leaves(e); });
  agree(index.next_tagged(from, end, page_tag::dirty),
        [](const model_entry& e) { return e.tags[0]; });
  agree(index.next_tagged(from, end, page_tag::writeback),
        [](const model_entry& e) { return e.tags[1]; });
}

RC_GTEST_PROP(page_index, agrees_with_a_map, ()) {
  const auto a = make_arena(5u << 20);
  slab_cache nodes(*a, page_index::node_cache_options());
  const std::uint64_t page_count = *rc::gen::element<std::uint64_t>(
      1, 2, 63, 64, 65, 4095, 4096, 4097, 262144, 262145, 1ull << 40, (1ull << 52) - 1);
  page_index index(nodes, *a, page_count);
  // 4 KiB, 64 KiB and 2 MiB, and what fills a node and one slot of a node above the leaves.
  std::vector<page*> frames;
  for (const unsigned order : {9u, 4u, 4u, 4u, 5u, 6u, 1u}) frames.push_back(a->allocate(order));
  for (int i = 0; i < 25; ++i) frames.push_back(a->allocate());
  ASSERT_FALSE(std::ranges::count(frames, nullptr));
  model m;
  const auto any_index = [&] {
    // Near the ends, near each other, and anywhere.
    const auto near = *rc::gen::inRange<std::uint64_t>(0, std::min<std::uint64_t>(page_count, 70));
    switch (*rc::gen::inRange(0, 3)) {
      case 0:
        return near;
      case 1:
        return page_count - 1 - near;
      default:
        return *rc::gen::inRange<std::uint64_t>(0, page_count);
    }
  };
  const int steps = *rc::gen::inRange(0, 120);
  for (int i = 0; i < steps; ++i) {
    const std::uint64_t at = any_index();
    const auto behind = page_at_or_behind(m, at);
    if (behind == m.end() || behind->first > at) {
      RC_ASSERT(index.lookup(at) == nullptr);
      if (frames.empty()) continue;
      std::swap(frames[*rc::gen::inRange<std::size_t>(0, frames.size())], frames.back());
      page& p = *frames.back();
      const std::uint64_t first = at & ~std::uint64_t{p.frames() - 1};
      const auto next = page_at_or_behind(m, first);
      if ((p.is_large() && p.frames() >= page_count) || first + p.frames() > page_count) {
        continue;  // does not fit there
      }
      const result<> put = index.insert(first, p);
      if (next != m.end() && next->first < first + p.frames()) {
        RC_ASSERT(!put && put.error() == std::errc::file_exists);
      } else {
        RC_ASSERT(put.has_value());
        m[first] = {&p, {false, false}};
        frames.pop_back();
      }
    } else {
      const auto known = m.find(behind->first);
      const auto tag = static_cast<unsigned>(*rc::gen::inRange(0, 2));
      RC_ASSERT(index.lookup(at) == known->second.frame);
      if (!frames.empty() && !frames.back()->is_large()) {
        RC_ASSERT(index.insert(at, *frames.back()).error() == std::errc::file_exists);
      }
      switch (*rc::gen::inRange(0, 4)) {
        case 0:
          index.set_tag(at, page_tag{tag});
          known->second.tags[tag] = true;
          break;
        case 1:
          index.clear_tag(at, page_tag{tag});
          known->second.tags[tag] = false;
          break;
        case 2: {
          const unsigned order = known->second.frame->order;
          const auto other =
              std::ranges::find_if(frames, [order](const page* p) { return p->order == order; });
          if (other == frames.end()) break;
          index.replace(at, **other);
          std::swap(*other, known->second.frame);
          break;
        }
        default:
          index.erase(at);
          frames.push_back(known->second.frame);
          m.erase(known);
      }
    }
    RC_ASSERT(index.size() == m.size());
    const std::uint64_t from = any_index();
    check_next(index, m, from, from + *rc::gen::inRange<std::uint64_t>(0, 200));
    check_next(index, m, from, page_count);
    check_next(index, m, from, UINT64_MAX);
  }
  for (const auto& [at, entry] : m) {
    RC_ASSERT(index.lookup(at) == entry.frame);
    RC_ASSERT(index.lookup(at + entry.frame->frames() - 1) == entry.frame);
  }
  while (!m.empty()) {
    index.erase(m.begin()->first);
    frames.push_back(m.begin()->second.frame);
    m.erase(m.begin());
  }
  RC_ASSERT(nodes.statistics().objects_in_use == 0u);
  for (page* p : frames) put_page(*p);
}

TEST(page_index, a_search_past_the_last_page_finds_nothing) {
  const auto a = make_arena();
  slab_cache nodes(*a, page_index::node_cache_options());
  page_index index(nodes, *a, 4096);
  page* p = a->allocate();
  page* q = a->allocate();
  ASSERT_TRUE(index.insert(0, *p));
  ASSERT_TRUE(index.insert(4032, *q));
  EXPECT_EQ(index.next(4032, UINT64_MAX)->index, 4032u);
  EXPECT_FALSE(index.next(4033, UINT64_MAX)) << "must not begin again at 0";
  EXPECT_FALSE(index.next(4096, UINT64_MAX));
  EXPECT_FALSE(index.next(5000, 6000));
  index.erase(0);
  index.erase(4032);
  put_page(*p);
  put_page(*q);
}

TEST(page_index, without_a_node_nothing_changes) {
  const auto a = make_arena();
  slab_cache nodes(*a, page_index::node_cache_options());
  page_index index(nodes, *a, 1ull << 30);
  page* p = a->allocate();
  page* q = a->allocate();
  ASSERT_TRUE(index.insert(7, *p));
  index.set_tag(7, page_tag::dirty);
  std::vector<page*> taken;
  while (page* f = a->allocate()) taken.push_back(f);
  // Uses up the nodes of the slab's last frame, each insertion with fewer than it would need.
  std::uint64_t at = 0;
  std::vector<std::uint64_t> inserted{7};
  for (;;) {
    at += 1ull << 24;
    const std::uint64_t nodes_before = nodes.statistics().objects_in_use;
    const auto r = index.insert(at, *q);
    if (!r) {
      EXPECT_EQ(r.error().value(), ENOMEM);
      EXPECT_EQ(nodes.statistics().objects_in_use, nodes_before);
      break;
    }
    inserted.push_back(at);
    ASSERT_LT(inserted.size(), 1000u);
  }
  EXPECT_EQ(index.size(), inserted.size());
  EXPECT_EQ(index.lookup(at), nullptr);
  EXPECT_EQ(index.lookup(7), p);
  EXPECT_EQ(index.next_tagged(0, UINT64_MAX, page_tag::dirty)->index, 7u);
  EXPECT_EQ(index.next(at, UINT64_MAX), std::nullopt);
  // With memory the same insertion succeeds.
  put_page(*taken.back());
  taken.pop_back();
  EXPECT_TRUE(index.insert(at, *q));
  inserted.push_back(at);
  for (const std::uint64_t i : inserted) index.erase(i);
  EXPECT_EQ(nodes.statistics().objects_in_use, 0u);
  for (page* f : taken) put_page(*f);
  put_page(*p);
  put_page(*q);
}

TEST(page_index, an_index_that_never_had_a_node_stays_empty_without_memory) {
  const auto a = make_arena();
  slab_cache nodes(*a, page_index::node_cache_options());
  page_index index(nodes, *a, 1ull << 30);
  std::vector<page*> taken;
  while (page* f = a->allocate()) taken.push_back(f);
  EXPECT_FALSE(index.insert(1, *taken.front()));
  EXPECT_EQ(index.lookup(1), nullptr);
  EXPECT_EQ(index.size(), 0u);
  for (page* f : taken) put_page(*f);
}

// Readers do what address_space::find does while one thread inserts, erases and recycles frames
// between two indexes: whatever they keep a reference of is the page that they looked for.
TEST(page_index, lookups_are_never_wrong_after_the_check_of_identity) {
  const auto a = make_arena();
  slab_cache nodes(*a, page_index::node_cache_options());
  constexpr std::uint64_t span = 300;
  std::array<page_index, 2> indexes{page_index(nodes, *a, span * 64), page_index(nodes, *a, span)};
  std::atomic<bool> stop{false};
  std::atomic<std::uint64_t> found{0};
  const auto find = [&](page_index& index, std::uint64_t at) -> page_ref {
    page* p = index.lookup(at);
    if (p == nullptr || !p->refs().get_unless_zero()) return {};
    page_ref ref = page_ref::adopt(*p);
    if (p->owner.load(std::memory_order_acquire) != &index ||  // acquire: the identity with it
        p->index.load(std::memory_order_relaxed) != at) {      // relaxed: see above
      return {};
    }
    return ref;
  };
  std::vector<std::thread> readers;
  for (unsigned t = 0; t < 2; ++t) {
    readers.emplace_back([&, t] {
      std::mt19937_64 rng(t);
      while (!stop.load()) {
        const unsigned which = rng() % 2;
        const std::uint64_t at = rng() % span * (which == 0 ? 64 : 1);
        const page_ref p = find(indexes[which], at);
        if (!p) continue;
        found.fetch_add(1);
        // The owner writes identity and contents before it publishes them.
        std::uint64_t words[2];
        std::memcpy(words, p->data(), sizeof words);
        ASSERT_EQ(words[0], at);
        ASSERT_EQ(words[1], which);
      }
    });
  }
  std::mt19937_64 rng(99);
  std::array<std::map<std::uint64_t, page*>, 2> held;
  // Until the readers have had their turn, which they may get late.
  for (int i = 0; i < 60000 || found.load() == 0; ++i) {
    const unsigned which = rng() % 2;
    const std::uint64_t at = rng() % span * (which == 0 ? 64 : 1);
    const auto known = held[which].find(at);
    if (known == held[which].end()) {
      page* p = a->allocate();
      if (p == nullptr) continue;
      const std::uint64_t words[2] = {at, which};
      std::memcpy(p->data(), words, sizeof words);
      if (!indexes[which].insert(at, *p)) {
        put_page(*p);
        continue;
      }
      p->index.store(at, std::memory_order_relaxed);               // relaxed: with the owner
      p->owner.store(&indexes[which], std::memory_order_release);  // release: pairs with find
      held[which][at] = p;
    } else if (known->second->refs().freeze(1)) {
      indexes[which].erase(at);
      known->second->owner.store(nullptr, std::memory_order_relaxed);  // relaxed: frozen
      a->release(*known->second);
      held[which].erase(known);
    }
  }
  stop.store(true);
  for (auto& t : readers) t.join();
  EXPECT_GT(found.load(), 0u);
  for (unsigned which = 0; which < 2; ++which) {
    for (const auto& [at, p] : held[which]) {
      indexes[which].erase(at);
      put_page(*p);
    }
  }
}

}  // namespace
}  // namespace forebay
