// A mapping for the tests of mapped objects: a table of an object's blocks, over a device whose
// free blocks hold garbage, so that a byte that nobody wrote is seen. It answers both ways.
#pragma once

#include <functional>

#include "forebay/cache/block_api.h"
#include "forebay/cache/mapped_object.h"
#include "forebay/cache/test_space.h"

namespace forebay {

class test_mapping {
 public:
  struct entry {
    extent_state state = extent_state::hole;
    std::uint64_t block = 0;  // of the device
  };

  test_mapping(memory_device& dev, std::uint32_t block_bytes, std::uint64_t object_bytes,
               bool delays, std::uint64_t seed)
      : device_(dev),
        block_bytes_(block_bytes),
        delays_(delays),
        rng_(seed),
        table_(object_bytes / block_bytes),
        used_(dev.limits().size_bytes / block_bytes) {
    for (std::uint64_t b = 0; b < used_.size(); ++b) scribble(b);
  }

  // ---- What both ways do ----

  result<> reserve(std::uint64_t block) {
    entry& e = table_[block];
    if (e.state != extent_state::hole) return {};
    if (reserved_ + in_use() >= used_.size() - spare_) return fail(ENOSPC);
    if (delays_) {
      e.state = extent_state::delayed;
      ++reserved_;
    } else {
      e = {extent_state::unwritten, allocate(block)};
    }
    return {};
  }
  void give_block(std::uint64_t block) {
    entry& e = table_[block];
    if (e.state != extent_state::delayed) return;
    --reserved_;
    e = {unwritten_ ? extent_state::unwritten : extent_state::mapped, allocate(block)};
  }
  void set_written(std::uint64_t offset, std::uint64_t length) {
    for (std::uint64_t b = offset / block_bytes_; b < (offset + length) / block_bytes_; ++b) {
      EXPECT_TRUE(table_[b].state == extent_state::unwritten ||
                  table_[b].state == extent_state::mapped);
      table_[b].state = extent_state::mapped;
    }
  }
  void remove(std::uint64_t offset, std::uint64_t length) {
    ++unmaps_;
    for (std::uint64_t b = offset / block_bytes_; b < (offset + length) / block_bytes_; ++b) {
      entry& e = table_[b];
      if (e.state == extent_state::delayed) --reserved_;
      if (e.state == extent_state::mapped || e.state == extent_state::unwritten) {
        used_[e.block] = false;
        scribble(e.block);
      }
      e = {};
    }
  }
  // Whether a call is to fail: `failing` counts those that do, after `passing` that do not.
  result<> may_fail() {
    if (passing_ != 0) {
      --passing_;
      return {};
    }
    if (failing_ == 0) return {};
    --failing_;
    return fail(EIO);
  }
  void fail_calls(unsigned after, unsigned count) {
    passing_ = after;
    failing_ = count;
  }
  // The next blocks are allocated far from each other.
  void scatter(bool on) { scatter_ = on; }
  // Without an exception next to the one before, as long as that is free.
  void keep_together() { wanders_ = false; }
  void answer_unwritten(bool on) { unwritten_ = on; }
  void leave_free(std::uint64_t blocks) { spare_ = used_.size() - blocks; }

  const entry& at(std::uint64_t block) const { return table_[block]; }
  std::uint64_t blocks() const { return table_.size(); }
  std::uint64_t in_use() const {
    return static_cast<std::uint64_t>(std::count(used_.begin(), used_.end(), true));
  }
  std::uint64_t reserved() const { return reserved_; }
  std::uint64_t unmaps() const { return unmaps_; }
  std::uint32_t block_bytes() const { return block_bytes_; }
  std::mt19937_64& rng() { return rng_; }
  // What the device has of the object.
  std::vector<std::byte> stored(std::uint64_t bytes) {
    std::vector<std::byte> all(bytes);
    for (std::uint64_t at = 0; at < bytes; at += block_bytes_) {
      const entry& e = table_[at / block_bytes_];
      if (e.state != extent_state::mapped) continue;
      std::memcpy(all.data() + at, device_.contents().data() + e.block * block_bytes_,
                  std::min<std::uint64_t>(block_bytes_, bytes - at));
    }
    return all;
  }

  std::uint64_t committed_size = 0;

 private:
  void scribble(std::uint64_t block) {
    std::memset(device_.contents().data() + block * block_bytes_, 0xee, block_bytes_);
  }
  // Beside the block of the one before, if that is free.
  std::uint64_t allocate(std::uint64_t for_block) {
    std::uint64_t goal = rng_() % used_.size();
    if (for_block != 0 && !scatter_ && (!wanders_ || rng_() % 16 != 0)) {
      const entry& before = table_[for_block - 1];
      if (before.state == extent_state::mapped || before.state == extent_state::unwritten) {
        goal = before.block + 1;
      }
    }
    for (std::uint64_t i = 0; i < used_.size(); ++i) {
      const std::uint64_t b = (goal + i) % used_.size();
      if (used_[b]) continue;
      used_[b] = true;
      return b;
    }
    FOREBAY_ASSERT(false);
    return 0;
  }

  memory_device& device_;
  const std::uint32_t block_bytes_;
  const bool delays_;
  bool scatter_ = false;
  bool wanders_ = true;
  bool unwritten_ = true;
  unsigned passing_ = 0;
  unsigned failing_ = 0;
  std::mt19937_64 rng_;
  std::vector<entry> table_;
  std::vector<bool> used_;
  std::uint64_t reserved_ = 0;
  std::uint64_t spare_ = 0;
  std::uint64_t unmaps_ = 0;
};

// What does not depend on how a mapping says where blocks lie.
template <typename Mapping>
class table_mapping : public Mapping {
 public:
  explicit table_mapping(test_mapping& table) : table_(table) {}

  task<> written(std::uint64_t offset, std::uint64_t length) override {
    if (const result<> r = table_.may_fail(); !r) co_return fail(r.error());
    table_.set_written(offset, length);
    co_return result<>{};
  }
  task<> unmap(std::uint64_t offset, std::uint64_t length) override {
    if (const result<> r = table_.may_fail(); !r) co_return fail(r.error());
    table_.remove(offset, length);
    co_return result<>{};
  }
  task<> commit(std::uint64_t size) override {
    if (const result<> r = table_.may_fail(); !r) co_return fail(r.error());
    table_.committed_size = size;
    co_return result<>{};
  }

 protected:
  test_mapping& table_;
};

// As extents, sometimes shorter than they could be.
class test_extents final : public table_mapping<extent_mapping> {
 public:
  using table_mapping::table_mapping;

  task<mapped_extent> map(std::uint64_t offset, std::uint64_t length, map_purpose why) override {
    asked.push_back({offset, length, why});
    if (why != map_purpose::report) {
      if (const result<> r = table_.may_fail(); !r) co_return fail(r.error());
    }
    const std::uint64_t unit = table_.block_bytes();
    const std::uint64_t first = offset / unit;
    const std::uint64_t most = std::min((length + unit - 1) / unit, table_.blocks() - first);
    std::uint64_t n = 0;
    for (; n < most; ++n) {
      if (why == map_purpose::reserve) {
        if (const result<> r = table_.reserve(first + n); !r) {
          if (n == 0) co_return fail(r.error());
          break;
        }
      }
      if (why == map_purpose::write_back) table_.give_block(first + n);
      if (n != 0 && !joins(table_.at(first), table_.at(first + n), n)) break;
    }
    const test_mapping::entry& e = table_.at(first);
    mapped_extent answer{.offset_bytes = first * unit,
                         .length_bytes = n * unit,
                         .device_offset_bytes = e.block * unit,
                         .state = e.state,
                         .is_new = e.state == extent_state::unwritten};
    answer.boundary = table_.rng()() % 4 == 0;
    if (lie) lie(answer, why);
    co_return answer;
  }

  struct question {
    std::uint64_t offset, length;
    map_purpose why;
  };
  std::vector<question> asked;
  std::function<void(mapped_extent&, map_purpose)> lie;

 private:
  static bool joins(const test_mapping::entry& a, const test_mapping::entry& b, std::uint64_t n) {
    const bool has = a.state == extent_state::mapped || a.state == extent_state::unwritten;
    return a.state == b.state && (!has || b.block == a.block + n);
  }
};

class test_blocks final : public table_mapping<block_mapping> {
 public:
  using table_mapping::table_mapping;

  task<> get_block(std::uint64_t block, buffer_head& b, map_purpose why) override {
    if (why != map_purpose::report) {
      if (const result<> r = table_.may_fail(); !r) co_return fail(r.error());
    }
    const bool was_hole = table_.at(block).state == extent_state::hole;
    if (why == map_purpose::reserve) {
      if (const result<> r = table_.reserve(block); !r) co_return fail(r.error());
    }
    if (why == map_purpose::write_back) table_.give_block(block);
    const test_mapping::entry& e = table_.at(block);
    switch (e.state) {
      case extent_state::hole:
        break;
      case extent_state::delayed:
        b.set(bh_delay);
        break;
      case extent_state::unwritten:
        map_bh(b, e.block);
        b.set(was_hole ? bh_unwritten | bh_new : bh_unwritten);
        break;
      case extent_state::mapped:
        map_bh(b, e.block);
        break;
    }
    if (table_.rng()() % 4 == 0) b.set(bh_boundary);
    if (lie) lie(b, why);
    co_return result<>{};
  }

  std::function<void(buffer_head&, map_purpose)> lie;
};

struct object_shape {
  bool by_blocks = false;
  std::uint32_t block_bytes = 4096;
  unsigned max_page_order = 0;
  bool delays = true;
};

inline void PrintTo(const object_shape& s, std::ostream* out) {
  *out << (s.by_blocks ? "blocks of " : "extents of ") << s.block_bytes << ", order "
       << s.max_page_order << (s.delays ? ", delayed" : ", at once");
}

inline std::vector<std::byte> read_all(mapped_object& o) {
  std::vector<std::byte> out(o.size_bytes());
  const result<std::size_t> n = sync_wait(o.read(0, out));
  EXPECT_TRUE(n && *n == out.size());
  return out;
}

// An object on a device in memory, with devices in between that the test may have.
struct object_rig {
  static constexpr std::uint64_t object_bytes = 4u << 20;

  explicit object_rig(const object_shape& shape, std::uint64_t seed = 1,
                      std::uint64_t device_bytes = 1u << 20,
                      const std::function<device&(memory_device&)>& between = {})
      : memory(device_bytes),
        table(memory, shape.block_bytes, object_bytes, shape.delays, seed),
        dev(between ? between(memory) : memory) {
    const mapped_object::options opts{.max_bytes = object_bytes,
                                      .block_bytes = shape.block_bytes,
                                      .max_page_order = shape.max_page_order,
                                      .known_extents_max = 24};
    if (shape.by_blocks) {
      object.emplace(*cache, dev, blocks, opts);
    } else {
      object.emplace(*cache, dev, extents, opts);
    }
  }
  ~object_rig() {
    object.reset();
    expect_all_given_back(*cache);
  }
  void evict_all() {
    ASSERT_TRUE(invalidate_bdev(object->space()));
    cache->evict_pages(UINT32_MAX);
  }

  memory_device memory;
  test_mapping table;
  device& dev;
  test_extents extents{table};
  test_blocks blocks{table};
  std::unique_ptr<page_cache> cache = make_cache(8u << 20);
  std::optional<mapped_object> object;
};

}  // namespace forebay
