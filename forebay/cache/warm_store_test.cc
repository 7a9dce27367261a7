// One thread: not in the thread sanitizer's tree.
// Warm stores: what a process that ended at any step left is found again, all of it that was
// acknowledged and nothing that is stale; and what a file says that does not fit is refused.

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>

#include "forebay/block/file_device.h"
#include "forebay/cache/shrink.h"
#include "forebay/cache/test_space.h"
#include "forebay/cache/test_warm_file.h"
#include "forebay/cache/warm_store.h"

namespace forebay {
namespace {

using bytes = std::vector<std::byte>;

constexpr std::size_t image_bytes = 6u << 20;
constexpr std::size_t cache_bytes = page_cache::min_bytes;

bytes contents_of(const std::string& path) {
  std::ifstream in(path, std::ios::binary | std::ios::ate);
  bytes out(static_cast<std::size_t>(in.tellg()));
  in.seekg(0);
  in.read(reinterpret_cast<char*>(out.data()), static_cast<std::streamsize>(out.size()));
  return out;
}

// Keeps the inode.
void put_contents(const std::string& path, std::span<const std::byte> data) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out.write(reinterpret_cast<const char*>(data.data()), static_cast<std::streamsize>(data.size()));
}

// Calls back before and after each bio reaches the device.
class watched_device final : public device {
 public:
  watched_device(device& below, std::function<void()> look) noexcept
      : below_(below), look_(std::move(look)) {}
  const device_limits& limits() const noexcept override { return below_.limits(); }
  void submit(bio& b) noexcept override {
    look_();
    below_.submit(b);
    look_();
  }
  result<file_extent> extent_at(std::uint64_t offset) const override {
    return below_.extent_at(offset);
  }

 private:
  device& below_;
  std::function<void()> look_;
};

class WarmStore : public ::testing::Test {
 protected:
  // Names of this process's own, in memory.
  WarmStore()
      : base_("/dev/shm/forebay-test-" + std::to_string(::getpid()) + "-" +
              std::to_string(monotonic_clock::now_ns())),
        image_(base_ + ".img"),
        file_(base_ + ".warm") {
    put_contents(image_, filled(image_bytes, 0x11));
  }
  ~WarmStore() override {
    for (const std::string& path : {image_, file_, base_ + ".other"}) std::remove(path.c_str());
  }

  warm_store::options options_for(const std::string& file) const {
    return {.path = file,
            .cache_bytes = cache_bytes,
            .images = {{image_, 512, false}},
            .discard = false,
            .wait_ns = 0};
  }

  // One run of a process with a cache in the file.
  struct life {
    explicit life(const warm_store::options& opts, unsigned max_order = 0,
                  std::function<void()> look = {}) {
      auto opened = warm_store::open(opts);
      if (!opened) {
        why = opened.error();
        return;
      }
      store = std::move(*opened);
      auto dev = file_device::open(opts.images.at(0).path, {.read_only = opts.images[0].read_only});
      FOREBAY_ASSERT(dev.has_value());
      below = std::move(*dev);
      if (look) watched = std::make_unique<watched_device>(*below, std::move(look));
      device& used = watched ? static_cast<device&>(*watched) : *below;
      auto made = page_cache::create(
          {.bytes = opts.cache_bytes, .huge_pages = false, .eviction = eviction, .warm = store});
      FOREBAY_ASSERT(made.has_value());
      cache = std::move(*made);
      space = std::make_unique<address_space>(
          *cache, used,
          address_space::options{.block_bytes = opts.images[0].block_bytes,
                                 .max_page_order = max_order,
                                 .warm_slot = store->slot_of(0)});
      std::vector<address_space*> by_slot(store->slot_of(0) + 1, nullptr);
      by_slot.back() = space.get();
      recovered = cache->recover(by_slot);
    }
    // Ends as a killed process does, or in order.
    ~life() {
      if (store) store->close(false);
    }
    void end_in_order() {
      ASSERT_TRUE(sync_wait(space->flush()));
      store->close(true);
    }
    bool good() const { return why.empty() && recovered.has_value(); }

    static constexpr eviction_policy eviction = eviction_policy::adaptive;
    std::string why;
    std::shared_ptr<warm_store> store;
    std::unique_ptr<device> below;
    std::unique_ptr<watched_device> watched;
    std::unique_ptr<page_cache> cache;
    std::unique_ptr<address_space> space;
    result<> recovered;
  };

  bytes read_all(address_space& space) {
    bytes out(image_bytes);
    EXPECT_TRUE(sync_wait(space.read(0, out)));
    return out;
  }

  // Leaves a file with a few dirty pages, one of them in part, and clean ones; returns what the
  // image should read as.
  bytes leave_dirty() {
    life l(options_for(file_));
    EXPECT_TRUE(l.good()) << l.why;
    bytes want = read_all(*l.space);
    for (const std::size_t at : {std::size_t{0}, std::size_t{40960}, image_bytes - 1024}) {
      const bytes data = filled(1024, 0x77);
      EXPECT_TRUE(sync_wait(l.space->write(at, data)));
      std::copy(data.begin(), data.end(), want.begin() + static_cast<std::ptrdiff_t>(at));
    }
    return want;
  }

  const std::string base_;
  const std::string image_;
  const std::string file_;
};

// What a test looks back to: everything that would be there, had the process been killed then.
struct moment {
  bytes file;
  bytes image;
  bytes acknowledged;
  std::size_t from = 0;  // of the write under way
  bytes data;
};

TEST_F(WarmStore, AtEveryStepAllThatWasAcknowledgedIsThereAndNothingIsStale) {
  const bool stress = std::getenv("FOREBAY_STRESS") != nullptr;
  for (unsigned seed = 0; seed < (stress ? 200u : 4u); ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 rng(seed);
    const unsigned max_order = seed % 2 == 0 ? 0 : 4;
    std::vector<moment> moments;
    put_contents(image_, filled(image_bytes, 0x11));
    moment now{.file = {}, .image = {}, .acknowledged = filled(image_bytes, 0x11), .data = {}};
    unsigned wait = 0;
    const auto look = [&] {
      if (wait-- != 0) return;
      wait = static_cast<unsigned>(rng() % 300);
      if (moments.size() == 6) return;
      moments.push_back(now);
      moments.back().file = contents_of(file_);
      moments.back().image = contents_of(image_);
    };
    wait = 100;
    std::remove(file_.c_str());
    {
      life l(options_for(file_), max_order, look);
      ASSERT_TRUE(l.good()) << l.why;
      for (int i = 0; i < 600; ++i) {
        const unsigned what = static_cast<unsigned>(rng() % 100);
        const std::size_t unit = rng() % 4 == 0 ? 1 : rng() % 2 == 0 ? 512 : 4096;
        std::size_t length = (1 + rng() % (rng() % 8 == 0 ? 140000 : 9000)) / unit * unit;
        length = std::max(length, unit);
        const std::size_t from = rng() % (image_bytes - length) / unit * unit;
        if (what < 55) {
          now.from = from;
          now.data = random_bytes(rng, length);
          ASSERT_TRUE(sync_wait(l.space->write(from, now.data)));
          look();
        } else if (what < 62) {
          const std::size_t start = from / 512 * 512;
          now.from = start;
          now.data =
              filled(std::min<std::size_t>(length * 20 / 512 * 512 + 512, image_bytes - start), 0);
          ASSERT_TRUE(sync_wait(l.space->write_zeroes(start, now.data.size(), {})));
          look();
        } else if (what < 85) {
          bytes out(length);
          ASSERT_TRUE(sync_wait(l.space->read(from, out)));
          look();
        } else if (what < 90) {
          ASSERT_TRUE(sync_wait(l.space->flush()));
          look();
        } else if (what < 95) {
          l.cache->evict_pages(20);
        } else {
          // A page moves to another frame, or is split.
          page* spare = l.cache->memory().allocate(0);
          l.cache->vacate(l.cache->memory().frame(
                              static_cast<std::uint32_t>(rng() % l.cache->memory().page_count())),
                          spare);
          if (spare != nullptr) put_page(*spare);
        }
        std::copy(now.data.begin(), now.data.end(),
                  now.acknowledged.begin() + static_cast<std::ptrdiff_t>(now.from));
        now.data.clear();
      }
    }
    ASSERT_FALSE(moments.empty());
    std::uint64_t found = 0;
    for (const moment& m : moments) {
      put_contents(image_, m.image);
      put_contents(file_, m.file);
      bytes seen;
      {
        life l(options_for(file_), max_order);
        ASSERT_TRUE(l.good()) << l.why;
        found += l.store->statistics().recovered_pages;
        seen = read_all(*l.space);
        for (std::size_t i = 0; i < image_bytes; ++i) {
          const bool under_way = i >= m.from && i - m.from < m.data.size();
          if (seen[i] == m.acknowledged[i] || (under_way && seen[i] == m.data[i - m.from]))
            continue;
          FAIL() << "byte " << i << (under_way ? " of the write under way" : "");
        }
        ASSERT_TRUE(sync_wait(l.space->flush()));
      }
      EXPECT_EQ(contents_of(image_), seen) << "what was clean is not what the device has";
    }
    EXPECT_GT(found, moments.size() * 100) << "pages were lost";
  }
}

TEST_F(WarmStore, ARunThatEndedInOrderIsFoundCleanAndWarm) {
  const bytes want = leave_dirty();
  {
    life l(options_for(file_));
    ASSERT_TRUE(l.good());
    EXPECT_EQ(l.store->statistics().dirty_pages, 3u);
    EXPECT_EQ(l.cache->statistics().dirty_pages, 3u);
    l.end_in_order();
  }
  EXPECT_EQ(contents_of(image_), want);
  life l(options_for(file_));
  ASSERT_TRUE(l.good());
  EXPECT_TRUE(l.store->statistics().was_clean);
  EXPECT_EQ(l.store->statistics().dirty_pages, 0u);
  const std::uint64_t pages = l.cache->statistics().resident_pages;
  EXPECT_EQ(l.store->statistics().recovered_pages, pages);
  EXPECT_GT(pages, l.cache->memory().page_count() * 9 / 10);
  EXPECT_EQ(read_all(*l.space), want);
}

TEST_F(WarmStore, AStartThatFailsChangesNothing) {
  const bytes want = leave_dirty();
  {
    auto opts = options_for(file_);
    auto store = warm_store::open(opts);
    ASSERT_TRUE(store) << store.error();
    std::shared_ptr<warm_store> shared = std::move(*store);
    auto cache = page_cache::create({.bytes = cache_bytes, .huge_pages = false, .warm = shared});
    ASSERT_TRUE(cache);
    shared->close(false);
  }
  life l(options_for(file_));
  ASSERT_TRUE(l.good());
  EXPECT_EQ(l.store->statistics().dirty_pages, 3u);
  EXPECT_EQ(read_all(*l.space), want);
}

TEST_F(WarmStore, WhatDoesNotFitThisRunIsWrittenBackFirst) {
  const auto larger = [](warm_store::options& o) { o.cache_bytes *= 2; };
  const auto blocks = [](warm_store::options& o) { o.images[0].block_bytes = 4096; };
  const auto unserved = [](warm_store::options& o) { o.images[0].path += ".other"; };
  for (const std::function<void(warm_store::options&)>& change :
       std::vector<std::function<void(warm_store::options&)>>{larger, blocks, unserved}) {
    std::remove(file_.c_str());
    put_contents(image_, filled(image_bytes, 0x11));
    const std::string other = image_ + ".other";
    put_contents(other, filled(image_bytes, 0x22));
    const bytes want = leave_dirty();
    auto opts = options_for(file_);
    change(opts);
    {
      life l(opts);
      ASSERT_TRUE(l.good()) << l.why;
      EXPECT_EQ(l.store->statistics().written_back_pages, 3u);
      EXPECT_EQ(l.store->statistics().recovered_pages, 0u);
      EXPECT_EQ(l.store->remarks().size(), 1u);
    }
    EXPECT_EQ(contents_of(image_), want);
    EXPECT_EQ(contents_of(other), filled(image_bytes, 0x22));
    std::remove(other.c_str());
  }
}

TEST_F(WarmStore, WhatIsNotTheImageThatWasWrittenToIsRefused) {
  const bytes want = leave_dirty();
  const bytes file = contents_of(file_);
  const auto why = [&](const warm_store::options& o) {
    auto opened = warm_store::open(o);
    return opened ? std::string() : opened.error();
  };
  auto opts = options_for(file_);
  opts.images[0].read_only = true;
  EXPECT_NE(why(opts).find("without --read-only"), std::string::npos);
  {
    const life holder(options_for(file_));
    EXPECT_NE(why(options_for(file_)).find("in use by another server"), std::string::npos);
  }
  put_contents(file_, file);
  put_contents(image_, filled(image_bytes - 4096, 0x11));
  EXPECT_NE(why(options_for(file_)).find("shorter"), std::string::npos);
  // Another file of that name.
  put_contents(base_ + ".other", filled(image_bytes, 0x33));
  ASSERT_EQ(std::rename((base_ + ".other").c_str(), image_.c_str()), 0);
  EXPECT_NE(why(options_for(file_)).find("another file now"), std::string::npos);
  EXPECT_EQ(contents_of(file_), file);
  EXPECT_EQ(contents_of(image_), filled(image_bytes, 0x33));
  opts = options_for(file_);
  opts.discard = true;
  const life l(opts);
  ASSERT_TRUE(l.good());
  EXPECT_EQ(l.store->statistics().recovered_pages, 0u);
}

TEST_F(WarmStore, AnImageChangedAfterARunThatEndedInOrderIsReadAnew) {
  {
    life l(options_for(file_));
    read_all(*l.space);
    l.end_in_order();
  }
  put_contents(image_, filled(image_bytes, 0x44));
  life l(options_for(file_));
  ASSERT_TRUE(l.good());
  EXPECT_EQ(l.store->statistics().recovered_pages, 0u);
  EXPECT_EQ(read_all(*l.space), filled(image_bytes, 0x44));
}

TEST_F(WarmStore, AFileThatContradictsItselfIsRefused) {
  leave_dirty();
  const bytes file = contents_of(file_);
  const auto word_at = [](bytes& b, std::size_t at) -> std::uint64_t& {
    return *reinterpret_cast<std::uint64_t*>(b.data() + at);
  };
  constexpr std::size_t records = 73 * page_bytes;
  std::vector<std::size_t> used;
  bytes copy = file;
  for (std::size_t i = 0; i < arena::frames_of(cache_bytes); ++i) {
    if (word_at(copy, records + i * 8) != 0) used.push_back(records + i * 8);
  }
  ASSERT_GT(used.size(), 100u);
  const auto good = [&](const bytes& b) {
    put_contents(file_, b);
    const life l(options_for(file_));
    return l.good();
  };
  EXPECT_TRUE(good(file));
  EXPECT_FALSE(good(bytes(file.begin(), file.begin() + 100)));
  EXPECT_FALSE(good(bytes(file.begin(), file.end() - (2 << 20))));
  const auto with = [&](std::size_t at, std::uint64_t value) {
    bytes b = file;
    word_at(b, at) = value;
    return b;
  };
  const std::uint64_t word = word_at(copy, used[5]);
  EXPECT_FALSE(good(with(0, 1)));                                    // the magic
  EXPECT_FALSE(good(with(8, 2 | std::uint64_t{page_bytes} << 32)));  // the version
  EXPECT_FALSE(good(with(16, 7)));                                   // so few frames
  EXPECT_FALSE(good(with(used[5], word | std::uint64_t{1} << 63)));
  EXPECT_FALSE(good(with(used[5], word + (std::uint64_t{9} << warm_record::image_shift))));
  EXPECT_FALSE(good(with(used[5], word | warm_record::index_max)));  // beyond the end
  EXPECT_FALSE(good(with(used[5], word & ~(std::uint64_t{0xff} << warm_record::valid_shift))));
  // Two of one place.
  EXPECT_FALSE(
      good(with(used.back(), word_at(copy, used[used.size() - 9]) | std::uint64_t{1} << 44)));
  // Whatever else it says, nothing is touched that should not be.
  std::mt19937_64 rng(3);
  unsigned refused = 0;
  const int rounds = std::getenv("FOREBAY_STRESS") != nullptr ? 3000 : 60;
  for (int i = 0; i < rounds; ++i) {
    bytes b = file;
    for (std::uint64_t n = 1 + rng() % 3; n != 0; --n) {
      const std::size_t at = i % 2 == 0 ? used[rng() % used.size()] + rng() % 8 : rng() % 4400 * 2;
      b[at] = static_cast<std::byte>(rng());
    }
    if (!good(b)) ++refused;
  }
  EXPECT_GT(refused, static_cast<unsigned>(rounds) / 4);
}

TEST(HostileWarmFile, IsServedOrRefused) {
  hostile_warm_file file;
  EXPECT_EQ(file.serve({}), hostile_warm_file::fate::served);
  std::mt19937_64 rng(5);
  std::array<unsigned, 3> fates{};
  const int rounds = std::getenv("FOREBAY_STRESS") != nullptr ? 20'000 : 300;
  for (int i = 0; i < rounds; ++i) {
    std::vector<std::uint8_t> input(1 + rng() % 60);
    for (std::uint8_t& b : input) b = static_cast<std::uint8_t>(rng());
    ++fates[static_cast<std::size_t>(file.serve(input))];
  }
  EXPECT_GT(fates[0], 0u);
  EXPECT_GT(fates[2], 0u);
}

TEST_F(WarmStore, OnlyAFileInMemoryWillDo) {
  auto opts = options_for("/proc/self/status");
  EXPECT_FALSE(warm_store::open(opts));
  put_contents(file_, filled(5000, 1));
  const auto foreign = warm_store::open(options_for(file_));
  ASSERT_FALSE(foreign);
  EXPECT_NE(foreign.error().find("not a warm cache"), std::string::npos);
  EXPECT_EQ(contents_of(file_), filled(5000, 1));
}

// A chunk that was given back is ordinary memory until it comes back, and the file has a hole
// there.
TEST_F(WarmStore, MemoryComesAndGoes) {
  auto opts = options_for(file_);
  opts.cache_bytes = 16u << 20;
  life l(opts);
  ASSERT_TRUE(l.good()) << l.why;
  arena& memory = l.cache->memory();
  memory.set_limit_bytes(8u << 20);
  EXPECT_LE(memory.committed_bytes(), 8u << 20);
  memory.set_limit_bytes(UINT64_MAX);
  while (memory.bring_back()) {
  }
  EXPECT_EQ(memory.statistics().offline_chunks, 0u);
  const bytes data = filled(3u << 20, 0x55);
  ASSERT_TRUE(sync_wait(l.space->write(0, data)));
  bytes out(data.size());
  ASSERT_TRUE(sync_wait(l.space->read(0, out)));
  EXPECT_EQ(out, data);
}

}  // namespace
}  // namespace forebay
