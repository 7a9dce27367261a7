// Crashes: whatever a crash leaves of the writes that were not flushed, everything acknowledged
// before a completed flush, and every FUA write, is there, and no byte has a value that it never
// had. At every moment of a trace, for every subset: what a crash may keep or lose is a cell, so
// the subsets of a cell's writes say all (crash_judge).

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <optional>

#include "forebay/base/sanitizer.h"
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
    const std::uint64_t clock = r.dev.clock();
    const scoped_lock hold(r.lock);
    for (std::uint64_t i = 0; i < n; ++i) {
      r.facts.push_back({clock, start + from + i, versions[from + i]});
    }
  };
  for (int i = 0; i < operations; ++i) {
    const std::uint64_t from = rng() % mine;
    const std::uint64_t n = 1 + rng() % std::min<std::uint64_t>(mine - from, 12);
    const std::uint64_t what = rng() % 40;
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
    if (what < 16) {
      EXPECT_TRUE(co_await r.space.sync_range((start + from) * cell_bytes, n * cell_bytes));
      note(from, n, acknowledged);
    }
  }
  co_return result<>{};
}

// The version that a piece of a write has, if all its bytes say so and belong to this cell.
std::optional<std::uint64_t> version_of(std::uint64_t cell, std::span<const std::byte> piece) {
  std::array<std::uint64_t, cell_bytes / 8> words;
  std::memcpy(words.data(), piece.data(), cell_bytes);
  for (std::size_t i = 0; i < words.size(); i += 2) {
    if (words[i] != cell || words[i + 1] != words[1]) return std::nullopt;
  }
  return words[1];
}

// Goes through a log and what was known to be durable, moment by moment, and keeps for each cell
// what it may hold after a crash right then: what its last durable write has left, or what any
// later one would.
class crash_judge {
 public:
  crash_judge(std::vector<recorded_operation> log, std::vector<durable_fact> facts,
              const std::vector<history>& written)
      : log_(std::move(log)), facts_(std::move(facts)), written_(written), cells_(cells) {}

  // Says what is wrong at the first moment at which something is.
  testing::AssertionResult judge() {
    struct event {
      std::uint64_t clock;
      std::size_t entry;
    };
    std::vector<event> events;
    for (std::size_t i = 0; i < log_.size(); ++i) {
      events.push_back({log_[i].submitted, i});
      if (log_[i].completed != 0) events.push_back({log_[i].completed, i});
    }
    std::ranges::sort(events, {}, &event::clock);
    std::ranges::sort(facts_, {}, &durable_fact::log_clock);
    auto fact = facts_.begin();
    for (const event& e : events) {
      for (; fact != facts_.end() && fact->log_clock < e.clock; ++fact) {
        if (auto r = learn(*fact); !r) return r;
      }
      const recorded_operation& op = log_[e.entry];
      const auto r = e.clock == op.submitted ? submitted(e.entry) : completed(e.entry);
      if (!r) return r;
    }
    for (; fact != facts_.end(); ++fact) {
      if (auto r = learn(*fact); !r) return r;
    }
    return testing::AssertionSuccess();
  }

  std::uint64_t writes() const { return writes_; }

 private:
  struct piece {
    std::size_t entry;  // of the log, which is in the order of submission
    std::uint64_t version;
  };
  struct cell_state {
    std::vector<piece> open;         // not durable, and submitted after the last that is
    std::uint64_t on_medium = 0;     // version of the last durable write
    std::size_t on_medium_next = 0;  // entry of it, plus one
    std::uint64_t promised = 0;      // the newest that somebody was told is durable
  };

  testing::AssertionResult learn(const durable_fact& f) {
    cell_state& c = cells_[f.cell];
    c.promised = std::max(c.promised, f.version);
    return check(f.cell);
  }

  testing::AssertionResult check(std::uint64_t number) const {
    const cell_state& c = cells_[number];
    std::uint64_t oldest = c.on_medium;
    for (const piece& p : c.open) oldest = std::min(oldest, p.version);
    if (oldest >= c.promised) return testing::AssertionSuccess();
    return testing::AssertionFailure() << "cell " << number << " may have version " << oldest
                                       << ", but " << c.promised << " was durable";
  }

  testing::AssertionResult submitted(std::size_t entry) {
    const recorded_operation& op = log_[entry];
    if (op.op != bio_op::write) return testing::AssertionSuccess();
    ++writes_;
    for (std::uint64_t at = 0; at < op.length_bytes; at += cell_bytes) {
      const std::uint64_t number = (op.offset_bytes + at) / cell_bytes;
      const auto version = version_of(number, std::span(op.data).subspan(at, cell_bytes));
      // A cell that was never written is zeros, as part of a page that was.
      const bool blank = std::all_of(op.data.begin() + static_cast<std::ptrdiff_t>(at),
                                     op.data.begin() + static_cast<std::ptrdiff_t>(at + cell_bytes),
                                     [](std::byte b) { return b == std::byte{0}; });
      if (!version && !blank) {
        return testing::AssertionFailure() << "cell " << number << " holds foreign bytes";
      }
      const std::uint64_t is = blank ? 0 : *version;
      if (is > written_[number].written.load()) {
        return testing::AssertionFailure() << "cell " << number << " comes from the future";
      }
      cells_[number].open.push_back({entry, is});
      if (auto r = check(number); !r) return r;
    }
    return testing::AssertionSuccess();
  }

  testing::AssertionResult completed(std::size_t entry) {
    const recorded_operation& op = log_[entry];
    if (op.status != 0) return testing::AssertionSuccess();
    if (op.op == bio_op::write && op.fua) {
      make_durable(entry);
    } else if (op.op == bio_op::write) {
      done_.push_back(entry);
    } else if (op.op == bio_op::flush) {
      std::erase_if(done_, [&](std::size_t w) {
        if (log_[w].completed >= op.submitted) return false;
        make_durable(w);
        return true;
      });
    }
    return testing::AssertionSuccess();
  }

  void make_durable(std::size_t entry) {
    const recorded_operation& op = log_[entry];
    for (std::uint64_t at = 0; at < op.length_bytes; at += cell_bytes) {
      cell_state& c = cells_[(op.offset_bytes + at) / cell_bytes];
      for (const piece& p : c.open) {
        if (p.entry == entry && entry >= c.on_medium_next) {
          c.on_medium = p.version;
          c.on_medium_next = entry + 1;
        }
      }
      std::erase_if(c.open, [&](const piece& p) { return p.entry < c.on_medium_next; });
    }
  }

  const std::vector<recorded_operation> log_;
  std::vector<durable_fact> facts_;
  const std::vector<history>& written_;
  std::vector<cell_state> cells_;
  std::vector<std::size_t> done_;  // writes that have completed and are not durable
  std::uint64_t writes_ = 0;
};

// Has several coroutines on each of so many threads write, flush and sync, until so many writes
// are in the recorder's log.
void make_a_trace(crash_rig& r, unsigned threads, int operations) {
  constexpr unsigned per_thread = 3;
  struct counted {
    static task<> go(crash_rig& rig, unsigned number, unsigned count, int most,
                     std::atomic<unsigned>& open) {
      co_await write_and_flush(rig, number, count, most);
      if (open.fetch_sub(1) == 1) rig.space.stop_flusher();
      co_return result<>{};
    }
  };
  std::atomic<unsigned> left{threads * per_thread};
  run_on_loops(threads, [&](unsigned t) {
    task_list tasks;
    tasks.push_back(r.space.run_flusher());
    for (unsigned i = 0; i < per_thread; ++i) {
      tasks.push_back(counted::go(r, t * per_thread + i, threads * per_thread, operations, left));
    }
    return tasks;
  });
  EXPECT_EQ(r.slow.broken_rules(), 0u);
}

TEST(crash, leaves_everything_that_was_made_durable) {
  const bool stress = std::getenv("FOREBAY_STRESS") != nullptr;
  const int operations = stress ? 30'000 : FOREBAY_ASAN + FOREBAY_TSAN != 0 ? 600 : 2'500;
  std::uint64_t writes = 0;
  for (const unsigned threads : {1u, 2u}) {
    crash_rig r;
    make_a_trace(r, threads, operations);
    crash_judge judge(r.dev.log(), r.facts, r.cell);
    ASSERT_TRUE(judge.judge());
    writes += judge.writes();
    // The newest is in the cache and on the device after one more flush.
    ASSERT_TRUE(sync_wait(r.space.flush()));
    const auto stored = r.memory.contents();
    for (std::uint64_t c = 0; c < cells; ++c) {
      const std::uint64_t newest = r.cell[c].written.load();
      const auto bytes = std::span(stored).subspan(c * cell_bytes, cell_bytes);
      ASSERT_TRUE(newest == 0 || version_of(c, bytes) == newest) << "cell " << c;
    }
  }
  EXPECT_GE(writes, static_cast<std::uint64_t>(operations) * 4);
}

// The judge sees what it is there for.
TEST(crash, judge_finds_a_flush_that_did_nothing_and_a_write_that_was_late) {
  crash_rig r;
  make_a_trace(r, 1, 200);
  const auto log = r.dev.log();
  ASSERT_TRUE(crash_judge(log, r.facts, r.cell).judge());

  auto without_flushes = log;
  for (recorded_operation& op : without_flushes) {
    if (op.op == bio_op::flush) op.status = -EIO;
    op.fua = false;
  }
  EXPECT_FALSE(crash_judge(without_flushes, r.facts, r.cell).judge());

  auto foreign = log;
  const auto write =
      std::ranges::find(foreign, bio_op::write, [](const recorded_operation& op) { return op.op; });
  ASSERT_NE(write, foreign.end());
  write->data.front() ^= std::byte{1};
  EXPECT_FALSE(crash_judge(foreign, r.facts, r.cell).judge());

  // What was promised a moment earlier than it was on the medium.
  auto early = r.facts;
  for (durable_fact& f : early) f.log_clock = 0;
  EXPECT_FALSE(crash_judge(log, early, r.cell).judge());
}

}  // namespace
}  // namespace forebay
