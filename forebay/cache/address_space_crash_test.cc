// Crashes: whatever a crash leaves of the writes that were not flushed, everything acknowledged
// before a completed flush, and every FUA write, is there, and no byte has a value that it never
// had.

#include <gtest/gtest.h>

#include "forebay/block/recorder_device.h"
#include "forebay/block/test_devices.h"
#include "forebay/cache/test_space.h"

namespace forebay {
namespace {

constexpr std::uint64_t cell_bytes = 512;  // what the device writes in one piece
constexpr std::uint64_t cells = 12288;
constexpr std::uint64_t device_bytes = cells * cell_bytes;

// Each coroutine has cells of its own. Cell contents are its number and a version, which grows.
struct history {
  std::atomic<std::uint64_t> written{0};  // newest version whose write has begun
};

struct durable_fact {
  std::uint64_t log_clock;  // known to the coroutine when the recorder's clock stood here
  std::uint64_t cell;
  std::uint64_t version;
};

struct crash_rig {
  memory_device memory{device_bytes};
  slow_device slow{memory, 100'000};
  recorder_device dev{slow};
  std::unique_ptr<page_cache> cache = make_cache();
  address_space space{*cache, dev, {}};
  std::vector<history> cell = std::vector<history>(cells);
  mutex lock;
  std::vector<durable_fact> facts;

  std::uint64_t log_clock() const {
    std::uint64_t last = 0;
    for (const auto& r : dev.log()) last = std::max({last, r.submitted, r.completed});
    return last;
  }
};

std::vector<std::byte> contents(std::uint64_t first, std::uint64_t n,
                                const std::vector<std::uint64_t>& versions) {
  std::vector<std::byte> out(n * cell_bytes);
  for (std::uint64_t i = 0; i < n; ++i) {
    for (std::uint64_t at = 0; at < cell_bytes; at += 16) {
      const std::uint64_t words[2] = {first + i, versions[i]};
      std::memcpy(out.data() + i * cell_bytes + at, words, sizeof words);
    }
  }
  return out;
}

task<> write_and_flush(crash_rig& r, unsigned number, unsigned count, int operations) {
  std::mt19937_64 rng(number);
  const std::uint64_t mine = cells / count;
  const std::uint64_t start = number * mine;
  std::vector<std::uint64_t> acknowledged(mine, 0);
  const auto note = [&](std::uint64_t from, std::uint64_t n,
                        const std::vector<std::uint64_t>& versions) {
    const std::uint64_t clock = r.log_clock();
    const scoped_lock hold(r.lock);
    for (std::uint64_t i = 0; i < n; ++i) {
      r.facts.push_back({clock, start + from + i, versions[from + i]});
    }
  };
  for (int i = 0; i < operations; ++i) {
    const std::uint64_t from = rng() % mine;
    const std::uint64_t n = 1 + rng() % std::min<std::uint64_t>(mine - from, 40);
    const std::uint64_t what = rng() % 20;
    if (what == 0) {
      const auto before = acknowledged;
      EXPECT_TRUE(co_await r.space.flush());
      note(0, mine, before);
      continue;
    }
    std::vector<std::uint64_t> versions;
    for (std::uint64_t k = 0; k < n; ++k) {
      versions.push_back(r.cell[start + from + k].written.fetch_add(1) + 1);
    }
    EXPECT_TRUE(
        co_await r.space.write((start + from) * cell_bytes, contents(start + from, n, versions)));
    std::copy(versions.begin(), versions.end(),
              acknowledged.begin() + static_cast<std::ptrdiff_t>(from));
    if (what < 6) {
      EXPECT_TRUE(co_await r.space.sync_range((start + from) * cell_bytes, n * cell_bytes));
      note(from, n, acknowledged);
    }
  }
  co_return result<>{};
}

// The log with each write cut into cells, which a crash may keep or lose one by one.
std::vector<recorded_operation> cut_into_cells(const std::vector<recorded_operation>& log) {
  std::vector<recorded_operation> out;
  for (const auto& r : log) {
    if (r.op != bio_op::write) {
      out.push_back(r);
      continue;
    }
    for (std::uint64_t at = 0; at < r.length_bytes; at += cell_bytes) {
      recorded_operation piece = r;
      piece.offset_bytes += at;
      piece.length_bytes = cell_bytes;
      const auto from = r.data.begin() + static_cast<std::ptrdiff_t>(at);
      piece.data.assign(from, from + cell_bytes);
      out.push_back(std::move(piece));
    }
  }
  return out;
}

// Checks every cell of an image; `durable` is the oldest version that each may have.
testing::AssertionResult check(const crash_rig& r, const std::vector<std::byte>& image,
                               const std::vector<std::uint64_t>& durable) {
  for (std::uint64_t c = 0; c < cells; ++c) {
    std::array<std::uint64_t, cell_bytes / 8> words;
    std::memcpy(words.data(), image.data() + c * cell_bytes, cell_bytes);
    const std::uint64_t version = words[1];
    for (std::size_t i = 0; i < words.size(); i += 2) {
      if (words[i + 1] != version || words[i] != (version == 0 ? 0 : c)) {
        return testing::AssertionFailure() << "cell " << c << " holds foreign bytes";
      }
    }
    if (version > r.cell[c].written.load()) {
      return testing::AssertionFailure() << "cell " << c << " comes from the future";
    }
    if (version < durable[c]) {
      return testing::AssertionFailure()
             << "cell " << c << " has version " << version << ", durable was " << durable[c];
    }
  }
  return testing::AssertionSuccess();
}

TEST(crash, leaves_everything_that_was_made_durable) {
  for (const unsigned threads : {1u, 2u}) {
    crash_rig r;
    constexpr unsigned per_thread = 3;
    std::atomic<unsigned> left{threads * per_thread};
    struct counted {
      static task<> go(crash_rig& rig, unsigned number, unsigned count,
                       std::atomic<unsigned>& open) {
        co_await write_and_flush(rig, number, count, 40);
        if (open.fetch_sub(1) == 1) rig.space.stop_flusher();
        co_return result<>{};
      }
    };
    run_on_loops(threads, [&](unsigned t) {
      task_list tasks;
      tasks.push_back(r.space.run_flusher());
      for (unsigned i = 0; i < per_thread; ++i) {
        tasks.push_back(counted::go(r, t * per_thread + i, threads * per_thread, left));
      }
      return tasks;
    });
    EXPECT_EQ(r.slow.broken_rules(), 0u);
    const auto log = cut_into_cells(r.dev.log());
    const std::uint64_t end = r.log_clock();
    ASSERT_GT(end, 100u);
    std::mt19937_64 rng(threads);
    for (int i = 0; i < 60; ++i) {
      const std::uint64_t moment = i == 0 ? end : rng() % (end + 1);
      std::vector<std::uint64_t> durable(cells, 0);
      for (const durable_fact& f : r.facts) {
        if (f.log_clock <= moment) durable[f.cell] = std::max(durable[f.cell], f.version);
      }
      const std::uint64_t share = rng() % 101;  // per cent of what is not durable that survives
      const auto image = image_after_crash(std::vector<std::byte>(device_bytes), log, moment,
                                           [&](std::size_t) { return rng() % 100 < share; });
      ASSERT_TRUE(check(r, image, durable)) << "moment " << moment << " of " << end;
    }
    // The newest is in the cache and on the device after one more flush.
    ASSERT_TRUE(sync_wait(r.space.flush()));
    std::vector<std::uint64_t> newest(cells);
    for (std::uint64_t c = 0; c < cells; ++c) newest[c] = r.cell[c].written.load();
    const auto stored = r.memory.contents();
    EXPECT_TRUE(check(r, {stored.begin(), stored.end()}, newest));
  }
}

}  // namespace
}  // namespace forebay
