// examples/tinyfs: against a model, without space, with damaged images; and whatever a crash
// leaves: after recovery nothing is wrong with the file system, every file that was synced has its
// contents, and no file has bytes that were never its own.

#include <gtest/gtest.h>

#include <cstdlib>
#include <optional>
#include <random>

#include "examples/tinyfs/tinyfs.h"
#include "forebay/base/sanitizer.h"
#include "forebay/block/fault_device.h"
#include "forebay/block/memory_device.h"
#include "forebay/block/recorder_device.h"

namespace tinyfs {
namespace {

using namespace forebay;
using contents = std::vector<std::byte>;

constexpr std::size_t cache_bytes = 4u << 20;
constexpr std::size_t sector_bytes = 512;

contents random_contents(std::mt19937_64& rng, std::size_t n) {
  contents c(n);
  for (std::byte& b : c) b = static_cast<std::byte>(rng());
  return c;
}

page_cache& the_cache() {
  static const auto cache = page_cache::create({.bytes = cache_bytes, .huge_pages = false});
  return **cache;
}

struct mounted {
  explicit mounted(device& dev) : space(the_cache(), dev, {}), fs(the_cache(), space) {}
  address_space space;
  file_system fs;
};

std::optional<contents> read_file(file_system& fs, const std::string& name) {
  const auto f = fs.open_file(name, false);
  if (!f) return std::nullopt;
  contents all((*f)->size_bytes());
  const auto n = (*f)->read(0, all);
  EXPECT_TRUE(n && *n == all.size());
  return all;
}

// ---- Against a model ----

TEST(tinyfs, agrees_with_a_model_over_many_mounts) {
  memory_device dev(2u << 20);
  ASSERT_TRUE(mounted(dev).fs.make(8));
  std::map<std::string, contents> model;
  std::mt19937_64 rng(5);
  for (int mounts = 0; mounts < (FOREBAY_ASAN + FOREBAY_TSAN != 0 ? 4 : 12); ++mounts) {
    mounted m(dev);
    ASSERT_TRUE(m.fs.open());
    const std::vector<entry> all = m.fs.list();
    ASSERT_EQ(all.size(), model.size());
    for (const entry& e : all) {
      ASSERT_EQ(e.size_bytes, model.at(e.name).size());
      ASSERT_EQ(read_file(m.fs, e.name), model.at(e.name)) << e.name;
    }
    ASSERT_TRUE(m.fs.check().empty());
    std::map<std::string, std::unique_ptr<file>> open;
    for (int i = 0; i < 30; ++i) {
      const std::string name = "file " + std::to_string(rng() % 6);
      if (rng() % 8 == 0) {
        // A new one that is not on the device goes when it is closed.
        ASSERT_TRUE(!open.contains(name) || open[name]->sync());
        open.erase(name);
        EXPECT_EQ(m.fs.remove(name).has_value(), model.erase(name) == 1);
        continue;
      }
      if (!open.contains(name)) {
        auto f = m.fs.open_file(name, true);
        ASSERT_TRUE(f);
        open[name] = std::move(*f);
      }
      file& f = *open[name];
      contents& c = model[name];
      if (rng() % 4 == 0) {
        const std::uint64_t size = rng() % 60'000;
        ASSERT_TRUE(f.truncate(size));
        c.resize(size);
      }
      const std::uint64_t at = rng() % 60'000;
      const contents data = random_contents(rng, 1 + rng() % 40'000);
      ASSERT_TRUE(f.write(at, data));
      if (c.size() < at + data.size()) c.resize(at + data.size());
      std::ranges::copy(data, c.begin() + static_cast<std::ptrdiff_t>(at));
    }
    for (auto& [name, f] : open) ASSERT_TRUE(f->sync());
  }
}

TEST(tinyfs, a_full_device_is_an_error_to_the_writer_and_harms_nobody) {
  memory_device dev(1u << 20);
  mounted m(dev);
  ASSERT_TRUE(m.fs.make(4));
  ASSERT_TRUE(m.fs.open());
  const std::uint64_t free = m.fs.free_blocks();
  const contents data(100'000, std::byte{1});
  {
    auto f = m.fs.open_file("kept", true);
    ASSERT_TRUE(f && (*f)->write(0, data) && (*f)->sync());
    auto g = m.fs.open_file("too much", true);
    ASSERT_TRUE(g);
    const result<> r = (*g)->write(0, contents(2u << 20));
    ASSERT_FALSE(r);
    EXPECT_EQ(r.error().value(), ENOSPC);
    EXPECT_EQ(m.fs.open_file("kept", false).error().value(), EBUSY);
    EXPECT_EQ(m.fs.remove("kept").error().value(), EBUSY);
  }
  EXPECT_EQ(m.fs.open_file("too much", false).error().value(), ENOENT) << "it was never synced";
  EXPECT_EQ(read_file(m.fs, "kept"), data);
  ASSERT_TRUE(m.fs.remove("kept"));
  EXPECT_EQ(m.fs.free_blocks(), free);
  EXPECT_TRUE(m.fs.check().empty());
  EXPECT_EQ(m.fs.open_file("a/b", true).error().value(), EINVAL);
  EXPECT_EQ(m.fs.open_file(std::string(name_max + 1, 'x'), true).error().value(), ENAMETOOLONG);
}

TEST(tinyfs, a_sync_that_fails_may_be_made_again) {
  for (std::uint64_t skip = 0; skip < 9; ++skip) {
    for (const bio_op op : {bio_op::write, bio_op::flush}) {
      memory_device below(1u << 20);
      fault_device dev(below);
      const contents data(50'000, std::byte{7});
      {
        mounted m(dev);
        ASSERT_TRUE(m.fs.make(4));
        ASSERT_TRUE(m.fs.open());
        auto f = m.fs.open_file("file", true);
        ASSERT_TRUE(f && (*f)->write(0, contents(9'000, std::byte{1})) && (*f)->sync());
        ASSERT_TRUE((*f)->truncate(0) && (*f)->write(0, data));
        dev.inject({.op = op, .skip = skip, .count = 1});
        const bool first = (*f)->sync().has_value();
        ASSERT_TRUE(first || (*f)->sync());
        dev.heal();
      }
      mounted again(below);
      ASSERT_TRUE(again.fs.open());
      EXPECT_EQ(read_file(again.fs, "file"), data);
      EXPECT_TRUE(again.fs.check().empty());
    }
  }
}

TEST(tinyfs, a_damaged_image_is_an_error_or_found) {
  std::mt19937_64 rng(3);
  memory_device dev(1u << 20);
  {
    mounted m(dev);
    ASSERT_TRUE(m.fs.make(4));
    ASSERT_TRUE(m.fs.open());
    for (const char* name : {"a", "b"}) {
      auto f = m.fs.open_file(name, true);
      ASSERT_TRUE(f && (*f)->write(5000, random_contents(rng, 30'000)) && (*f)->sync());
    }
  }
  // super, journal of three, bitmap, inodes: none of the data.
  const contents whole(dev.contents().begin(), dev.contents().end());
  for (int i = 0; i < (FOREBAY_ASAN + FOREBAY_TSAN != 0 ? 40 : 200); ++i) {
    const std::size_t at = rng() % 9 * block_bytes + rng() % (rng() % 2 == 0 ? 200 : block_bytes);
    dev.contents()[at] ^= static_cast<std::byte>(1 + rng() % 255);
    {
      mounted m(dev);
      if (m.fs.open()) {
        for (const entry& e : m.fs.list()) {
          if (e.size_bytes < (1u << 20)) read_file(m.fs, e.name);
        }
        m.fs.check();
      }
    }
    std::ranges::copy(whole, dev.contents().begin());
  }
}

// ---- Crashes ----

// What one file went through: a sync, or its removal, with the recorder's clock before and after.
struct step {
  std::string name;
  std::uint64_t begin;
  std::uint64_t end;
  std::optional<contents> after;
};

struct trace {
  contents before;
  std::vector<recorded_operation> log;  // in sectors: any of them may be torn off
  std::uint64_t clock = 0;
  std::vector<step> steps;
};

std::vector<recorded_operation> in_sectors(const std::vector<recorded_operation>& log) {
  std::vector<recorded_operation> out;
  for (const recorded_operation& op : log) {
    if (op.op != bio_op::write) {
      out.push_back(op);
      continue;
    }
    for (std::uint64_t at = 0; at < op.length_bytes; at += sector_bytes) {
      recorded_operation s = op;
      s.offset_bytes += at;
      s.length_bytes = sector_bytes;
      s.data.assign(op.data.begin() + static_cast<std::ptrdiff_t>(at),
                    op.data.begin() + static_cast<std::ptrdiff_t>(at + sector_bytes));
      out.push_back(std::move(s));
    }
  }
  return out;
}

// Files are written, cut, overwritten, synced and removed, some of them open and dirty all the
// time.
trace make_a_trace(int operations, std::uint64_t seed) {
  memory_device below(768u << 10);
  trace t;
  {
    mounted m(below);
    EXPECT_TRUE(m.fs.make(6));
  }
  t.before.assign(below.contents().begin(), below.contents().end());
  recorder_device dev(below);
  mounted m(dev);
  EXPECT_TRUE(m.fs.open());
  std::mt19937_64 rng(seed);
  std::map<std::string, std::unique_ptr<file>> open;
  for (int i = 0; i < operations; ++i) {
    const std::string name(1, static_cast<char>('a' + rng() % 4));
    const std::uint64_t begin = dev.clock();
    if (rng() % 6 == 0) {
      open.erase(name);
      if (m.fs.remove(name)) t.steps.push_back({name, begin, dev.clock(), std::nullopt});
      continue;
    }
    if (!open.contains(name)) {
      auto f = m.fs.open_file(name, true);
      EXPECT_TRUE(f);
      open[name] = std::move(*f);
    }
    file& f = *open[name];
    if (rng() % 3 == 0) {
      EXPECT_TRUE(f.truncate(rng() % 2 * (rng() % 20'000)));
    }
    const std::uint64_t at = rng() % (f.size_bytes() + 5000);
    EXPECT_TRUE(f.write(at, random_contents(rng, 1 + rng() % 20'000)));
    if (rng() % 3 == 0) continue;
    contents now(f.size_bytes());
    EXPECT_TRUE(f.read(0, now));
    EXPECT_TRUE(f.sync());
    t.steps.push_back({name, begin, dev.clock(), std::move(now)});
    if (rng() % 3 == 0) open.erase(name);
  }
  t.clock = dev.clock();
  t.log = in_sectors(dev.log());
  return t;
}

// What a file may be at a moment: what its last step left, and if the next one had begun, what that
// was to leave, or the old one with some of the new bytes in place: what is written over in place
// has no journal.
testing::AssertionResult judge_file(const trace& t, std::uint64_t moment, const std::string& name,
                                    const std::optional<contents>& is) {
  const std::optional<contents> none;
  const std::optional<contents>* was = &none;
  const step* next = nullptr;
  for (const step& s : t.steps) {
    if (s.name != name) continue;
    if (s.end <= moment) {
      was = &s.after;
    } else {
      next = &s;
      break;
    }
  }
  if (is == *was || (next != nullptr && is == next->after)) return testing::AssertionSuccess();
  if (next == nullptr || !is || !*was || !next->after || is->size() != (*was)->size()) {
    return testing::AssertionFailure() << name << " is neither the old nor the new one";
  }
  for (std::size_t i = 0; i < is->size(); ++i) {
    // Behind the new end its last block is zeros.
    const std::size_t end = next->after->size();
    const bool is_new = i < end ? (*is)[i] == (*next->after)[i]
                                : i / block_bytes == end / block_bytes && (*is)[i] == std::byte{0};
    if ((*is)[i] != (**was)[i] && !is_new) {
      return testing::AssertionFailure() << name << " has a foreign byte at " << i;
    }
  }
  return testing::AssertionSuccess();
}

template <typename Survives>
testing::AssertionResult judge(const trace& t, std::uint64_t moment, Survives survives) {
  const contents image = image_after_crash(t.before, t.log, moment, survives);
  memory_device dev(image.size());
  std::ranges::copy(image, dev.contents().begin());
  mounted m(dev);
  if (const result<> r = m.fs.open(); !r) {
    return testing::AssertionFailure() << "cannot be opened: " << r.error().message();
  }
  for (const char* name : {"a", "b", "c", "d"}) {
    if (auto r = judge_file(t, moment, name, read_file(m.fs, name)); !r) return r;
  }
  if (const auto wrong = m.fs.check(); !wrong.empty()) {
    return testing::AssertionFailure() << wrong.front();
  }
  return testing::AssertionSuccess();
}

// At every moment: none of the writes that were not flushed, all of them, and some of their
// sectors.
testing::AssertionResult judge_all(const trace& t, unsigned subsets, std::uint64_t moments_apart) {
  std::mt19937_64 rng(11);
  for (std::uint64_t moment = 1; moment <= t.clock; moment += moments_apart) {
    for (unsigned i = 0; i < subsets; ++i) {
      const std::uint64_t seed = rng();
      const unsigned kind = (moment + i) % 4;
      const auto survives = [&](std::size_t n) {
        std::uint64_t x = (seed ^ n) * 0x9e37'79b9'7f4a'7c15;
        x ^= x >> 29;
        switch (kind) {
          case 0:
            return false;
          case 1:
            return true;
          case 2:
            return (x & 1) != 0;
          default:
            return (x & 15) != 0;
        }
      };
      if (auto r = judge(t, moment, survives); !r)
        return r << " at " << moment << ", kind " << kind;
    }
  }
  return testing::AssertionSuccess();
}

TEST(tinyfs, survives_a_crash_at_any_moment) {
  const bool stress = std::getenv("FOREBAY_STRESS") != nullptr;
  const bool slow = FOREBAY_ASAN + FOREBAY_TSAN != 0;
  const trace t = make_a_trace(stress ? 150 : 24, 1);
  ASSERT_GT(t.steps.size(), 8u);
  ASSERT_TRUE(judge_all(t, stress ? 60 : 1, slow && !stress ? 5 : 1));
}

// The judge sees what it is there for: a device whose flushes do nothing.
TEST(tinyfs, a_device_that_does_not_flush_is_found_out) {
  trace t = make_a_trace(16, 2);
  for (recorded_operation& op : t.log) {
    if (op.op == bio_op::flush) op.status = -EIO;
  }
  EXPECT_FALSE(judge_all(t, 1, 1));
}

}  // namespace
}  // namespace tinyfs
