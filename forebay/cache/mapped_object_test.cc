// Mapped objects against a flat array of bytes, by both paths; what they cost; and what they make
// of failures and of a mapping that lies.

#include "forebay/cache/mapped_object.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>

#include "forebay/base/cache_line.h"
#include "forebay/base/sanitizer.h"
#include "forebay/block/test_devices.h"
#include "forebay/cache/test_mapping.h"

namespace forebay {
namespace {

// ---- Against a model ----

class mapped_model : public testing::TestWithParam<object_shape> {};

class model_run {
 public:
  model_run(const object_shape& shape, std::uint64_t seed)
      : r_(shape, seed, 6u << 20), rng_(seed) {}

  void step() {
    switch (rng_() % 16) {
      case 0:
      case 1:
        return truncate();
      case 2:
        return punch();
      case 3:
      case 4:
        return flush();
      case 5:
        return r_.evict_all();
      case 6:
        return r_.table.scatter(rng_() % 2 == 0);
      case 7:
        return report();
      case 8:
      case 9:
      case 10:
        return read();
      default:
        return write();
    }
  }
  void end() {
    flush();
    r_.evict_all();
    ASSERT_EQ(read_all(*r_.object), model_);
    // All of it goes back.
    ASSERT_TRUE(sync_wait(r_.object->truncate(0)));
    EXPECT_EQ(r_.table.in_use(), 0u);
    EXPECT_EQ(r_.table.reserved(), 0u);
  }

 private:
  std::uint64_t offset() {
    const std::uint64_t at = rng_() % (object_rig::object_bytes / 2);
    return rng_() % 3 == 0 ? round_down(at, std::uint64_t{1} << (rng_() % 8 + 9)) : at;
  }
  std::size_t length() { return 1 + rng_() % (std::size_t{1} << (rng_() % 20)); }

  void write() {
    const bool large = rng_() % 8 == 0;  // a stretch that large pages may be made for
    const std::uint64_t at = large ? round_down(offset(), std::uint64_t{1} << 16) : offset();
    const auto data = random_bytes(rng_, large ? 1u << (16 + rng_() % 5) : length());
    ASSERT_TRUE(sync_wait(r_.object->write(at, data)));
    if (model_.size() < at + data.size()) model_.resize(at + data.size());
    std::ranges::copy(data, model_.begin() + static_cast<std::ptrdiff_t>(at));
    ASSERT_EQ(r_.object->size_bytes(), model_.size());
  }
  void read() {
    const std::uint64_t at = offset();
    std::vector<std::byte> out(length());
    const result<std::size_t> n = sync_wait(r_.object->read(at, out));
    ASSERT_TRUE(n);
    ASSERT_EQ(*n, at >= model_.size() ? 0 : std::min(out.size(), model_.size() - at));
    ASSERT_TRUE(*n == 0 || std::memcmp(out.data(), model_.data() + at, *n) == 0) << "at " << at;
  }
  void truncate() {
    const std::uint64_t size = offset();
    ASSERT_TRUE(sync_wait(r_.object->truncate(size)));
    model_.resize(size);
    // Nothing behind it keeps a block.
    for (std::uint64_t b =
             round_up(size, std::uint64_t{r_.table.block_bytes()}) / r_.table.block_bytes();
         b < r_.table.blocks(); ++b) {
      ASSERT_EQ(r_.table.at(b).state, extent_state::hole);
    }
  }
  void punch() {
    const std::uint64_t at = offset();
    const std::size_t n = length();
    ASSERT_TRUE(sync_wait(r_.object->punch(at, n)));
    for (std::uint64_t i = at; i < std::min(at + n, model_.size()); ++i) model_[i] = std::byte{0};
  }
  // The device has it then, zeros behind the end included.
  void flush() {
    ASSERT_TRUE(sync_wait(r_.object->flush()));
    auto whole = model_;
    whole.resize(round_up(model_.size(), std::size_t{r_.table.block_bytes()}));
    ASSERT_EQ(r_.table.stored(whole.size()), whole);
    ASSERT_EQ(r_.table.reserved(), 0u);
    ASSERT_EQ(r_.table.committed_size, model_.size());
  }
  void report() {
    std::vector<mapped_extent> all(r_.table.blocks());
    const result<std::size_t> n = sync_wait(r_.object->extents(0, object_rig::object_bytes, all));
    ASSERT_TRUE(n);
    std::uint64_t at = 0;
    for (const mapped_extent& e : std::span(all).first(*n)) {
      ASSERT_EQ(e.offset_bytes, at);
      at = e.end_bytes();
      const test_mapping::entry& first = r_.table.at(e.offset_bytes / r_.table.block_bytes());
      ASSERT_EQ(e.state, first.state);
      if (e.has_blocks()) {
        ASSERT_EQ(e.device_offset_bytes, first.block * r_.table.block_bytes());
      }
    }
    ASSERT_EQ(at, round_up(model_.size(), std::size_t{r_.table.block_bytes()}));
  }

  object_rig r_;
  std::vector<std::byte> model_;
  std::mt19937_64 rng_;
};

TEST_P(mapped_model, agrees_with_a_flat_array) {
  const bool stress = std::getenv("FOREBAY_STRESS") != nullptr;
  const int steps = stress ? 30'000 : FOREBAY_TSAN != 0 ? 20 : FOREBAY_ASAN != 0 ? 30 : 60;
  for (std::uint64_t seed = 1; seed <= (FOREBAY_TSAN != 0 ? 1u : 2u); ++seed) {
    model_run run(GetParam(), seed);
    for (int i = 0; i < steps && !HasFatalFailure(); ++i) {
      SCOPED_TRACE(testing::Message() << "seed " << seed << " step " << i);
      run.step();
    }
    if (!HasFatalFailure()) run.end();
  }
}

INSTANTIATE_TEST_SUITE_P(
    shapes, mapped_model,
    testing::Values(object_shape{}, object_shape{.delays = false},
                    object_shape{.max_page_order = 4}, object_shape{.max_page_order = 9},
                    object_shape{.block_bytes = 512},
                    object_shape{.block_bytes = 1024, .delays = false},
                    object_shape{.by_blocks = true},
                    object_shape{.by_blocks = true, .delays = false},
                    object_shape{.by_blocks = true, .block_bytes = 512},
                    object_shape{.by_blocks = true, .block_bytes = 1024, .delays = false}));

// ---- What is asked, and what reaches the device ----

// Counts what passes, and says where.
class counting_device final : public device {
 public:
  explicit counting_device(device& below) noexcept : below_(below) {}
  const device_limits& limits() const noexcept override { return below_.limits(); }
  void submit(bio& b) noexcept override {
    if (b.is_transfer()) passed.push_back({b.op, b.offset_bytes, b.length_bytes});
    below_.submit(b);
  }
  struct transfer {
    bio_op op;
    std::uint64_t offset, length;
    bool operator==(const transfer&) const = default;
  };
  std::vector<transfer> passed;

 private:
  device& below_;
};

struct counted_rig {
  explicit counted_rig(const object_shape& shape)
      : rig(shape, 1, 6u << 20, [this](memory_device& m) -> device& {
          counter.emplace(m);
          return *counter;
        }) {}
  std::optional<counting_device> counter;
  object_rig rig;
};

TEST(mapped_object, a_hole_is_read_without_io) {
  for (const bool by_blocks : {false, true}) {
    counted_rig r({.by_blocks = by_blocks});
    mapped_object& o = *r.rig.object;
    ASSERT_TRUE(sync_wait(o.truncate(1u << 20)));
    EXPECT_EQ(read_all(o), filled(1u << 20, 0));
    // Delayed ones likewise, and a part of a block needs no read.
    ASSERT_TRUE(sync_wait(o.write(5000, filled(100, 7))));
    EXPECT_EQ(r.counter->passed.size(), 0u);
    EXPECT_EQ(r.rig.table.in_use(), 0u);
    EXPECT_EQ(r.rig.table.reserved(), 1u);
  }
}

TEST(mapped_object, what_was_written_in_pieces_lies_in_one_run) {
  counted_rig r({});
  mapped_object& o = *r.rig.object;
  constexpr std::uint64_t pages = 256;
  ASSERT_TRUE(sync_wait(o.truncate(pages * page_bytes)));
  for (std::uint64_t i = 0; i < pages; ++i) {
    ASSERT_TRUE(sync_wait(o.write(i * 101 % pages * page_bytes, filled(page_bytes, 1 + i % 200))));
  }
  r.rig.extents.lie = [](mapped_extent& e, map_purpose) { e.boundary = false; };
  r.rig.table.keep_together();
  r.rig.extents.asked.clear();
  ASSERT_TRUE(sync_wait(o.flush()));
  ASSERT_FALSE(r.rig.extents.asked.empty());
  EXPECT_EQ(r.rig.extents.asked[0].why, map_purpose::write_back);
  EXPECT_EQ(r.rig.extents.asked[0].offset, 0u);
  EXPECT_EQ(r.rig.extents.asked[0].length, pages * page_bytes)
      << "all that is delayed is asked for";
  std::array<mapped_extent, 32> all;
  const result<std::size_t> n = sync_wait(o.extents(0, UINT64_MAX, all));
  ASSERT_TRUE(n);
  EXPECT_LE(*n, 2u) << "the device's last block may come between";
  // What is known is not asked again: by reads, or by writes over it.
  r.rig.evict_all();
  const std::uint64_t calls = o.statistics().map_calls;
  const auto before = read_all(o);
  ASSERT_TRUE(sync_wait(o.write(0, before)));
  ASSERT_TRUE(sync_wait(o.flush()));
  EXPECT_EQ(o.statistics().map_calls, calls);
}

TEST(mapped_object, no_space_is_told_to_the_writer) {
  for (const bool by_blocks : {false, true}) {
    for (const bool delays : {false, true}) {
      object_rig r({.by_blocks = by_blocks, .delays = delays});
      r.table.leave_free(10);
      ASSERT_TRUE(sync_wait(r.object->write(0, filled(8 * page_bytes, 1))));
      const result<> w =
          sync_wait(r.object->write(8 * page_bytes + 100, filled(4 * page_bytes, 2)));
      ASSERT_FALSE(w);
      EXPECT_EQ(w.error().value(), ENOSPC);
      EXPECT_GE(r.object->size_bytes(), 8 * page_bytes);
      EXPECT_LE(r.object->size_bytes(), 10 * page_bytes);
      // What was written stays, and is written back without another word.
      auto want = filled(r.object->size_bytes(), 2);
      std::fill_n(want.begin(), 8 * page_bytes, std::byte{1});
      std::fill_n(want.begin() + 8 * page_bytes,
                  std::min<std::size_t>(100, want.size() - 8 * page_bytes), std::byte{0});
      ASSERT_TRUE(sync_wait(r.object->flush()));
      r.evict_all();
      EXPECT_EQ(read_all(*r.object), want);
      ASSERT_TRUE(sync_wait(r.object->truncate(page_bytes)));
      EXPECT_TRUE(sync_wait(r.object->write(page_bytes, filled(4 * page_bytes, 3))));
    }
  }
}

// The first blocks are under way when the question for what lies behind a boundary is asked.
TEST(mapped_object, submits_what_is_gathered_at_a_boundary) {
  for (const bool boundary : {false, true}) {
    counted_rig r({.by_blocks = true, .block_bytes = 1024});
    mapped_object& o = *r.rig.object;
    ASSERT_TRUE(sync_wait(o.truncate(page_bytes)));
    const auto data = filled(page_bytes, 5);
    std::ranges::copy(data, r.rig.memory.contents().begin() + 64 * 1024);
    std::size_t passed_before_third = SIZE_MAX;
    std::uint64_t block = 0;
    r.rig.blocks.lie = [&](buffer_head& b, map_purpose) {
      if (block == 2) passed_before_third = r.counter->passed.size();
      b.clear(bh_boundary);
      map_bh(b, 64 + block++);
      if (boundary && block == 2) b.set(bh_boundary);
    };
    EXPECT_EQ(read_all(o), data);
    r.rig.blocks.lie = {};
    using transfer = counting_device::transfer;
    if (boundary) {
      EXPECT_EQ(passed_before_third, 1u);
      EXPECT_EQ(r.counter->passed, (std::vector<transfer>{{bio_op::read, 64 * 1024, 2048},
                                                          {bio_op::read, 66 * 1024, 2048}}));
    } else {
      EXPECT_EQ(passed_before_third, 0u);
      EXPECT_EQ(r.counter->passed, (std::vector<transfer>{{bio_op::read, 64 * 1024, 4096}}));
    }
  }
}

// Bytes that a crash has left behind the end of the last block are never seen.
TEST(mapped_object, what_lies_behind_the_end_on_the_device_is_zeros) {
  for (const bool by_blocks : {false, true}) {
    for (const bool by_write : {false, true}) {
      object_rig r({.by_blocks = by_blocks});
      ASSERT_TRUE(sync_wait(r.object->write(0, filled(1000, 1))));
      ASSERT_TRUE(sync_wait(r.object->flush()));
      std::memset(r.memory.contents().data() + r.table.at(0).block * page_bytes + 1000, 0xaa, 3096);
      r.object.emplace(*r.cache, r.memory, r.extents,
                       mapped_object::options{.size_bytes = 1000, .max_bytes = 4u << 20});
      EXPECT_EQ(read_all(*r.object), filled(1000, 1));
      if (by_write) {
        ASSERT_TRUE(sync_wait(r.object->write(2000, filled(1000, 2))));
      } else {
        ASSERT_TRUE(sync_wait(r.object->truncate(3000)));
      }
      auto want = filled(3000, 0);
      std::fill_n(want.begin(), 1000, std::byte{1});
      if (by_write) std::fill_n(want.begin() + 2000, 1000, std::byte{2});
      EXPECT_EQ(read_all(*r.object), want);
      ASSERT_TRUE(sync_wait(r.object->flush()));
      want.resize(page_bytes);
      EXPECT_EQ(r.table.stored(page_bytes), want) << "on the device too";
    }
  }
}

TEST(mapped_object, refuses_what_is_too_large) {
  object_rig r({});
  const auto over = sync_wait(r.object->write(object_rig::object_bytes - 1, filled(2, 1)));
  ASSERT_FALSE(over);
  EXPECT_EQ(over.error().value(), EFBIG);
  EXPECT_EQ(sync_wait(r.object->write(UINT64_MAX, filled(2, 1))).error().value(), EFBIG);
  EXPECT_EQ(sync_wait(r.object->truncate(object_rig::object_bytes + 1)).error().value(), EFBIG);
  EXPECT_EQ(r.object->size_bytes(), 0u);
  EXPECT_EQ(r.table.reserved(), 0u);
}

// Metadata that was freed, and is dirty in the device's own space still, does not come after the
// data of the object that has the block now.
TEST(mapped_object, stale_aliases_of_new_blocks_are_not_written) {
  for (const bool by_blocks : {false, true}) {
    for (const std::uint32_t block : {512u, 4096u}) {
      memory_device memory(256u << 10);
      test_mapping table(memory, block, 256u << 10, by_blocks, 3);
      test_extents extents(table);
      test_blocks blocks(table);
      const auto cache = make_cache();
      address_space meta(*cache, memory, {.block_bytes = 512});
      {
        // All of the device is dirty metadata.
        for (std::uint64_t b = 0; b < memory.limits().size_bytes / block; ++b) {
          result<bh_ref> bh = getblk(meta, b, block);
          ASSERT_TRUE(bh);
          ASSERT_TRUE(lock_buffer(**bh));
          std::memset((*bh)->data, 0xbb, block);
          set_buffer_uptodate(**bh);
          mark_buffer_dirty(**bh);
          unlock_buffer(**bh);
        }
        const mapped_object::options opts{
            .max_bytes = 256u << 10, .block_bytes = block, .device_space = &meta};
        std::optional<mapped_object> o;
        if (by_blocks) {
          o.emplace(*cache, memory, blocks, opts);
        } else {
          o.emplace(*cache, memory, extents, opts);
        }
        table.answer_unwritten(!by_blocks);  // the flag of what is new goes with it
        if (by_blocks) {
          blocks.lie = [](buffer_head& b, map_purpose why) {
            if (why == map_purpose::write_back) b.set(bh_new);
          };
        }
        const auto data = filled(40 * block, 7);
        ASSERT_TRUE(sync_wait(o->write(0, data)));
        ASSERT_TRUE(sync_wait(o->flush()));
        ASSERT_TRUE(sync_blockdev(meta));
        EXPECT_EQ(table.stored(data.size()), data);
        // The others were written.
        const std::uint64_t kept =
            static_cast<std::uint64_t>(std::ranges::count(memory.contents(), std::byte{0xbb}));
        EXPECT_EQ(kept, memory.limits().size_bytes - data.size());
      }
    }
  }
}

// ---- Several at once ----

// Each has a stretch of its own; some write, read and empty theirs, one changes the size behind all
// of them. The device is slow and watches that no two transfers meet.
TEST(mapped_object, many_tasks_on_two_threads) {
  constexpr unsigned per_thread = 3;
  constexpr std::uint64_t stretch = 300'000;
  const int operations = FOREBAY_ASAN + FOREBAY_TSAN != 0 ? 25 : 60;
  for (const object_shape& shape :
       {object_shape{.max_page_order = 4}, object_shape{.by_blocks = true, .block_bytes = 1024}}) {
    std::optional<slow_device> slow;
    object_rig r(shape, 1, 6u << 20, [&](memory_device& m) -> device& {
      slow.emplace(m, 50'000);
      return *slow;
    });
    mapped_object& o = *r.object;
    ASSERT_TRUE(sync_wait(o.truncate(2 * per_thread * stretch)));
    std::atomic<unsigned> left{2 * per_thread};
    const auto work = [&](unsigned number) -> task<> {
      std::mt19937_64 rng(number);
      std::vector<std::byte> model(stretch);
      const std::uint64_t start = number * stretch;
      for (int i = 0; i < operations; ++i) {
        const std::uint64_t at = rng() % stretch;
        const std::size_t n = 1 + rng() % std::min<std::uint64_t>(stretch - at, 60'000);
        const unsigned what = rng() % 10;
        if (what < 4) {
          const auto data = random_bytes(rng, n);
          EXPECT_TRUE(co_await o.write(start + at, data));
          std::ranges::copy(data, model.begin() + static_cast<std::ptrdiff_t>(at));
        } else if (what == 4) {
          EXPECT_TRUE(co_await o.punch(start + at, n));
          std::fill_n(model.begin() + static_cast<std::ptrdiff_t>(at), n, std::byte{0});
        } else if (what == 5) {
          EXPECT_TRUE(co_await o.flush());
        } else if (what == 6) {
          EXPECT_TRUE(co_await invalidate_bdev_async(o.space()));
        } else if (what == 7) {
          EXPECT_TRUE(co_await o.truncate(2 * per_thread * stretch + rng() % 100'000));
        } else {
          std::vector<std::byte> out(n);
          const result<std::size_t> got = co_await o.read(start + at, out);
          EXPECT_TRUE(got && *got == n);
          EXPECT_TRUE(std::memcmp(out.data(), model.data() + at, n) == 0) << number << " at " << at;
        }
      }
      if (left.fetch_sub(1) == 1) o.space().stop_flusher();
      co_return result<>{};
    };
    // Reads everywhere: whatever there is just then, but not what the device has in free blocks.
    const auto watch = [&](unsigned number) -> task<> {
      std::mt19937_64 rng(number);
      std::vector<std::byte> out(30'000);
      const std::vector<std::byte> free_block = filled(32, 0xee);
      for (int i = 0; i < 4 * operations; ++i) {
        const result<std::size_t> n = co_await o.read(rng() % (2 * per_thread * stretch), out);
        EXPECT_TRUE(n);
        if (!n) break;
        const auto seen = std::span(out).first(*n);
        EXPECT_TRUE(std::ranges::search(seen, free_block).empty());
      }
      co_return result<>{};
    };
    run_on_loops(2, [&](unsigned t) {
      task_list tasks;
      if (t == 0) tasks.push_back(o.space().run_flusher());
      tasks.push_back(watch(t));
      for (unsigned i = 0; i < per_thread; ++i) tasks.push_back(work(t * per_thread + i));
      return tasks;
    });
    EXPECT_EQ(slow->broken_rules(), 0u);
    ASSERT_TRUE(sync_wait(o.flush()));
    EXPECT_EQ(r.table.reserved(), 0u);
  }
}

}  // namespace
}  // namespace forebay
