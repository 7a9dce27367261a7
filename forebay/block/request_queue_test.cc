// The request queue against a model: what goes where, what ends how, and who comes when.

#include "forebay/block/request_queue.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <map>
#include <new>
#include <set>

#include "forebay/base/sanitizer.h"
#include "forebay/block/memory_device.h"
#include "forebay/block/test_devices.h"

namespace {

// While set, nothrow allocations of this thread fail: those of pieces.
thread_local bool no_memory = false;

}  // namespace

// The thread sanitizer does not let its operator new be replaced.
#if FOREBAY_TSAN == 0
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept {
  if (no_memory) return nullptr;
  try {
    return ::operator new(bytes);
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}
#endif

namespace forebay {
namespace {

// Keeps bios until the test picks one, does it on its own memory, and fails those that touch a bad
// block with that block's error. One thread.
class picking_device final : public device {
 public:
  explicit picking_device(const device_limits& limits)
      : limits_(limits), contents(limits.size_bytes) {}

  const device_limits& limits() const noexcept override { return limits_; }
  void submit(bio& b) noexcept override {
    EXPECT_EQ(check_bio(b, limits_), 0) << "beyond the limits";
    held.push_back(&b);
    most = std::max(most, held.size());
  }

  void end(std::size_t which) {
    bio& b = *held[which];
    held.erase(held.begin() + static_cast<std::ptrdiff_t>(which));
    std::uint64_t at = b.offset_bytes;
    for (const iovec& s : b.used_segments()) {
      auto* const data = static_cast<std::byte*>(s.iov_base);
      const auto place = contents.begin() + static_cast<std::ptrdiff_t>(at);
      const auto n = static_cast<std::ptrdiff_t>(s.iov_len);
      if (b.op == bio_op::read) std::copy(place, place + n, data);
      if (b.op == bio_op::write) std::copy(data, data + n, place);
      at += s.iov_len;
    }
    std::int32_t status = 0;
    for (const auto& [block, error] : bad) {
      const std::uint64_t start = block * limits_.logical_block_bytes;
      if (b.op != bio_op::flush && start >= b.offset_bytes && start < b.end_bytes()) {
        status = -error;
        break;
      }
    }
    complete(b, status);
  }
  void end_all() {
    while (!held.empty()) end(0);
  }

 private:
  device_limits limits_;

 public:
  std::vector<std::byte> contents;
  std::vector<bio*> held;
  std::size_t most = 0;
  std::map<std::uint64_t, int> bad;  // block -> errno
};

// Lets what is ready on the executor run.
auto turn() {
  return await_completion([](completion& done) noexcept { executor::current()->defer(done); });
}

struct request : bio {
  using bio::bio;
  unsigned ends = 0;
};

void count_ends(bio& b) {
  b.run = [](completion& c) noexcept { ++static_cast<request&>(c).ends; };
}

// ---- Random bios ----

class model_run {
 public:
  model_run(std::uint64_t seed, unsigned steps) : rng_(seed), steps_(steps) {}

  task<> run() {
    device_limits limits;
    limits.size_bytes = blocks * block_bytes;
    limits.max_transfer_bytes = static_cast<std::uint32_t>(block_bytes * below(1, 25));
    limits.max_segments = static_cast<std::uint32_t>(below(1, 16));
    limits.boundary_bytes = below(0, 2) == 0 ? 0 : 4096;
    picking_device lower(limits);
    for (std::uint64_t n = below(0, 4); n != 0; --n) {
      lower.bad[below(0, blocks)] = static_cast<int>(below(100, 104));
    }
    const auto in_flight_max = static_cast<std::uint16_t>(below(1, 9));
    // Its counters have cache lines of their own, which a coroutine's frame is not aligned for.
    const auto made = std::make_unique<request_queue>(
        lower, request_queue::options{.in_flight_max = in_flight_max});
    request_queue& queue = *made;
    expected_.resize(limits.size_bytes);
    for (unsigned step = 0; step < steps_; ++step) {
      no_memory = below(0, 4) == 0;
      {
        std::optional<plug> gather;
        if (below(0, 2) == 0) gather.emplace();
        for (std::uint64_t n = below(1, 9); n != 0; --n) submit_one(queue);
        if (below(0, 8) == 0) co_await turn();  // unplugs by itself
      }
      no_memory = false;
      EXPECT_LE(lower.most, in_flight_max);
      for (std::uint64_t n = below(0, 12); n != 0 && !lower.held.empty(); --n) {
        lower.end(below(0, lower.held.size()));
        if (below(0, 2) == 0) co_await turn();
      }
      co_await turn();
      check_ended(lower);
    }
    while (!lower.held.empty()) {
      lower.end(below(0, lower.held.size()));
      co_await turn();
    }
    check_ended(lower);
    EXPECT_TRUE(under_way_.empty()) << "a bio that never ended";
    EXPECT_EQ(lower.contents, expected_);
    const request_queue_statistics s = queue.statistics();
    EXPECT_EQ(s.in_flight, 0u);
    merges += s.merged_back + s.merged_front;
    splits += s.splits;
    redone += s.redone;
    co_return result<>{};
  }

  static inline std::uint64_t merges = 0;
  static inline std::uint64_t splits = 0;
  static inline std::uint64_t redone = 0;

 private:
  static constexpr std::uint64_t blocks = 96;
  static constexpr std::uint64_t block_bytes = 512;

  struct entry {
    request b;
    std::vector<std::byte> memory;
    std::vector<std::byte> data;  // what was written
    std::uint64_t first = 0;
    std::uint64_t end = 0;
  };

  std::uint64_t below(std::uint64_t from, std::uint64_t to) { return from + rng_() % (to - from); }

  void submit_one(device& d) {
    const std::uint64_t first =
        next_first_ < blocks && below(0, 3) != 0 ? next_first_ : below(0, blocks);
    const std::uint64_t end =
        std::min<std::uint64_t>(first + below(1, below(0, 4) == 0 ? 24 : 4), blocks);
    next_first_ = end;
    for (std::uint64_t i = first; i < end; ++i) {
      if (busy_.contains(i)) return;
    }
    auto e = std::make_unique<entry>();
    e->first = first;
    e->end = end;
    e->b.op = below(0, 2) == 0 ? bio_op::read : bio_op::write;
    e->b.flags = e->b.op == bio_op::write && below(0, 8) == 0 ? bio_fua : 0;
    e->b.urgency = static_cast<bio_class>(below(0, 6) == 0 ? below(0, 3) : 0);
    e->b.offset_bytes = first * block_bytes;
    // In pieces with gaps between them.
    e->memory.resize((end - first) * 2 * block_bytes);
    for (std::size_t i = 0; i < e->memory.size(); i += 64) {
      std::fill_n(e->memory.begin() + static_cast<std::ptrdiff_t>(i), 64,
                  static_cast<std::byte>(rng_()));
    }
    std::size_t at = 0;
    for (std::uint64_t i = first; i < end; ++i, at += block_bytes) {
      e->b.add(e->memory.data() + at, block_bytes);
      if (below(0, 3) == 0) at += block_bytes;
      busy_.insert(i);
    }
    gather(e->b, e->data);
    count_ends(e->b);
    d.submit(e->b);
    under_way_.push_back(std::move(e));
  }

  static void gather(const bio& b, std::vector<std::byte>& out) {
    for (const iovec& s : b.used_segments()) {
      const auto* const data = static_cast<const std::byte*>(s.iov_base);
      out.insert(out.end(), data, data + s.iov_len);
    }
  }

  void check_ended(const picking_device& lower) {
    std::erase_if(under_way_, [&](const std::unique_ptr<entry>& e) {
      if (e->b.ends == 0) return false;
      EXPECT_EQ(e->b.ends, 1u);
      EXPECT_EQ(e->b.length_bytes, (e->end - e->first) * block_bytes) << "not as it was";
      std::set<std::int32_t> errors;
      for (std::uint64_t i = e->first; i < e->end; ++i) {
        const auto found = lower.bad.find(i);
        if (found != lower.bad.end()) errors.insert(-found->second);
        busy_.erase(i);
      }
      if (errors.empty()) {
        EXPECT_EQ(e->b.status, 0) << "somebody else's error";
      } else {
        EXPECT_TRUE(errors.contains(e->b.status)) << e->b.status;
      }
      const auto place = static_cast<std::ptrdiff_t>(e->first * block_bytes);
      const auto from = expected_.begin() + place;
      if (e->b.op == bio_op::read && errors.empty()) {
        std::vector<std::byte> got;
        gather(e->b, got);
        EXPECT_TRUE(std::equal(got.begin(), got.end(), from)) << "read of block " << e->first;
      }
      // A write that failed may have been done in part.
      if (e->b.op == bio_op::write && errors.empty()) {
        std::copy(e->data.begin(), e->data.end(), from);
      } else if (e->b.op == bio_op::write) {
        std::copy_n(lower.contents.begin() + place, e->data.size(), from);
      }
      return true;
    });
  }

  std::mt19937_64 rng_;
  const unsigned steps_;
  std::vector<std::byte> expected_;
  std::set<std::uint64_t> busy_;
  std::vector<std::unique_ptr<entry>> under_way_;
  std::uint64_t next_first_ = 0;
};

TEST(request_queue, does_what_a_model_says) {
  const unsigned runs = std::getenv("FOREBAY_STRESS") != nullptr ? 20'000 : 200;
  for (unsigned seed = 1; seed <= runs && !testing::Test::HasFailure(); ++seed) {
    SCOPED_TRACE(seed);
    model_run run(seed, 40);
    ASSERT_TRUE(sync_wait(run.run()));
  }
  // Each of these happened.
  EXPECT_GT(model_run::merges, runs);
  EXPECT_GT(model_run::splits, runs);
  EXPECT_GT(model_run::redone, runs / 10);
}

// ---- One thing each ----

struct fixture {
  explicit fixture(request_queue::options opts = {}, device_limits limits = small())
      : lower(limits), queue(std::make_unique<request_queue>(lower, opts)) {}

  static device_limits small() {
    device_limits l;
    l.size_bytes = 1u << 20;
    return l;
  }

  // Submits a bio of so many blocks over memory of its own.
  request& submit(bio_op op, std::uint64_t block, std::size_t count = 1,
                  bio_class urgency = bio_class::demand) {
    request& b = requests.emplace_back(op, block * 512);
    b.urgency = urgency;
    memory.emplace_back(count * 512);
    if (op != bio_op::flush) b.add(memory.back().data(), count * 512);
    count_ends(b);
    queue->submit(b);
    return b;
  }

  picking_device lower;
  std::unique_ptr<request_queue> queue;
  std::list<request> requests;
  std::list<std::vector<std::byte>> memory;
};

task<> neighbours_become_one() {
  fixture f;
  {
    const plug gather;
    f.submit(bio_op::write, 10);
    f.submit(bio_op::write, 11);  // back
    f.submit(bio_op::write, 9);   // front
    f.submit(bio_op::write, 20);
    f.submit(bio_op::read, 12);  // another operation
    f.submit(bio_op::write, 12, 1, bio_class::write_back);
    EXPECT_TRUE(f.lower.held.empty());
  }
  EXPECT_EQ(f.lower.held.size(), 4u);
  EXPECT_EQ(f.lower.held[0]->offset_bytes, 9u * 512);
  EXPECT_EQ(f.lower.held[0]->length_bytes, 3u * 512);
  const request_queue_statistics s = f.queue->statistics();
  EXPECT_EQ(s.merged_back, 1u);
  EXPECT_EQ(s.merged_front, 1u);
  EXPECT_EQ(s.requests, 4u);
  EXPECT_EQ(s.in_flight_max, 4u);
  f.lower.end_all();
  co_await turn();
  for (const request& b : f.requests) EXPECT_EQ(b.ends, 1u);
  // Without a plug nothing waits for a neighbour.
  f.submit(bio_op::write, 30);
  f.submit(bio_op::write, 31);
  EXPECT_EQ(f.lower.held.size(), 2u);
  f.lower.end_all();
  co_await turn();
  co_return result<>{};
}
TEST(request_queue, merges_what_is_plugged) { ASSERT_TRUE(sync_wait(neighbours_become_one())); }

task<> suspended_with_a_plug() {
  fixture f;
  const plug gather;
  f.submit(bio_op::read, 1);
  EXPECT_TRUE(f.lower.held.empty());
  co_await turn();
  EXPECT_EQ(f.lower.held.size(), 1u);
  // As many as there is room for go down before the next one is gathered.
  for (unsigned i = 0; i <= plug::gathered_max; ++i) f.submit(bio_op::read, 10 + 2 * i);
  EXPECT_EQ(f.lower.held.size(), 1u + plug::gathered_max);
  plug::unplug();
  EXPECT_EQ(f.lower.held.size(), 2u + plug::gathered_max);
  f.lower.end_all();
  co_await turn();
  co_return result<>{};
}
TEST(request_queue, unplugs_when_its_thread_is_about_to_wait) {
  ASSERT_TRUE(sync_wait(suspended_with_a_plug()));
}

task<> first_error_of_pieces() {
  device_limits limits = fixture::small();
  limits.max_transfer_bytes = 1024;
  fixture f({}, limits);
  f.lower.bad = {{3, EIO}, {9, ENOSPC}};
  request& b = f.submit(bio_op::write, 0, 24);
  EXPECT_EQ(f.lower.held.size(), 8u) << "pieces under way at a time";
  f.lower.end(4);  // blocks 8 and 9
  co_await turn();
  f.lower.end(1);  // blocks 2 and 3
  co_await turn();
  EXPECT_EQ(b.ends, 0u);
  f.lower.end_all();
  co_await turn();
  EXPECT_EQ(b.ends, 1u);
  EXPECT_EQ(b.status, -ENOSPC);
  EXPECT_EQ(f.queue->statistics().pieces, 8u) << "none is begun after an error";
  // What cannot be done at all does nothing.
  request& outside = f.submit(bio_op::write, (1u << 20) / 512 - 1, 24);
  co_await turn();
  EXPECT_EQ(outside.status, -EINVAL);
  EXPECT_TRUE(f.lower.held.empty());
  co_return result<>{};
}
TEST(request_queue, a_bio_that_is_cut_ends_once_with_its_first_error) {
  ASSERT_TRUE(sync_wait(first_error_of_pieces()));
}

task<> urgent_ones_first() {
  fixture f({.in_flight_max = 4, .passed_over_max = 3});
  for (unsigned i = 0; i < 4; ++i) f.submit(bio_op::read, 10 * i);
  request& ahead = f.submit(bio_op::read, 100, 1, bio_class::read_ahead);
  request& back = f.submit(bio_op::write, 200, 1, bio_class::write_back);
  request& demand = f.submit(bio_op::read, 300);
  EXPECT_EQ(f.lower.held.size(), 4u);
  const auto end_one = [&f]() { f.lower.end(0); };
  end_one();
  co_await turn();
  EXPECT_EQ(f.lower.held.back(), &demand);
  // Three places taken, of which write-back may not have the fourth.
  end_one();
  co_await turn();
  EXPECT_EQ(f.lower.held.size(), 3u);
  // Demand takes every place that comes free; still nobody is passed over more than three times.
  unsigned ends_until_back = 0;
  unsigned ends_until_ahead = 0;
  for (unsigned i = 0; i < 12; ++i) {
    while (f.queue->statistics().in_flight < 4) f.submit(bio_op::read, 400 + 10 * i);
    f.submit(bio_op::read, 600 + 10 * i);
    const auto down = [&f](const request& b) {
      return b.ends != 0 || std::ranges::find(f.lower.held, &b) != f.lower.held.end();
    };
    ends_until_back += down(back) ? 0 : 1;
    ends_until_ahead += down(ahead) ? 0 : 1;
    end_one();
    co_await turn();
  }
  EXPECT_LE(ends_until_back, 5u);
  EXPECT_LE(ends_until_ahead, 5u);
  const request_queue_statistics s = f.queue->statistics();
  EXPECT_EQ(s.classes[1].waited, 1u);
  EXPECT_EQ(s.classes[2].waited, 1u);
  EXPECT_GT(s.classes[0].waited, 5u);
  while (!f.lower.held.empty()) {
    end_one();
    co_await turn();
  }
  for (const request& b : f.requests) EXPECT_EQ(b.ends, 1u);
  co_return result<>{};
}
TEST(request_queue, urgent_bios_come_first_and_nobody_starves) {
  ASSERT_TRUE(sync_wait(urgent_ones_first()));
}

task<> too_many_wait() {
  fixture f({.in_flight_max = 1, .waiting_max = 2});
  for (unsigned i = 0; i < 3; ++i) f.submit(bio_op::read, 10 * i);
  f.submit(bio_op::read, 11);  // merged with one that waits, so it needs no room
  request& busy = f.submit(bio_op::read, 100);
  for (unsigned i = 0; i < 2; ++i) f.submit(bio_op::read, 200 + 10 * i, 1, bio_class::read_ahead);
  request& dropped = f.submit(bio_op::read, 300, 1, bio_class::read_ahead);
  co_await turn();
  EXPECT_EQ(busy.status, -EBUSY);
  EXPECT_EQ(dropped.status, -EAGAIN);
  EXPECT_EQ(f.queue->statistics().classes[0].refused, 1u);
  EXPECT_EQ(f.queue->statistics().classes[2].refused, 1u);
  while (!f.lower.held.empty()) {
    f.lower.end(0);
    co_await turn();
  }
  for (const request& b : f.requests) EXPECT_EQ(b.ends, 1u);
  co_return result<>{};
}
TEST(request_queue, what_waits_is_bounded) { ASSERT_TRUE(sync_wait(too_many_wait())); }

// Two bios to be cut and no memory: one has the queue's own record, the other one waits for it.
task<> no_memory_for_pieces() {
  device_limits limits = fixture::small();
  limits.max_transfer_bytes = 512;
  fixture f({}, limits);
  no_memory = true;
  request& one = f.submit(bio_op::write, 0, 3);
  request& two = f.submit(bio_op::write, 10, 2);
  no_memory = false;
  EXPECT_EQ(f.lower.held.size(), 1u);
  no_memory = true;
  while (!f.lower.held.empty()) {
    EXPECT_EQ(f.lower.held.size(), 1u);
    f.lower.end(0);
    co_await turn();
  }
  no_memory = false;
  EXPECT_EQ(one.ends, 1u);
  EXPECT_EQ(two.ends, 1u);
  EXPECT_EQ(one.status, 0);
  EXPECT_EQ(two.status, 0);
  EXPECT_EQ(f.queue->statistics().pieces, 5u);
  co_return result<>{};
}
TEST(request_queue, cuts_piece_by_piece_without_memory) {
#if FOREBAY_TSAN != 0
  GTEST_SKIP() << "operator new cannot be replaced here";
#endif
  ASSERT_TRUE(sync_wait(no_memory_for_pieces()));
}

// ---- Several threads ----

// Each writes and reads back blocks of its own, in every class: four of each at a time, so that
// those of a class do not find places at once even where the threads happen to run one by one.
task<> work_of_a_thread(device& d, unsigned thread, unsigned rounds) {
  constexpr unsigned at_once = 12;
  std::array<std::array<std::byte, 512>, at_once> memory;
  struct batch {
    unsigned left = 0;
    std::int32_t error = 0;
    resume_completion resume;
  } all;
  std::array<request, at_once> bios;
  for (unsigned round = 0; round < 2 * rounds; ++round) {
    const bool writes = round % 2 == 0;
    co_await await_completion([&](completion& done) noexcept {
      all.left = at_once;
      all.resume.handle = static_cast<resume_completion&>(done).handle;
      std::optional<plug> gather;
      if (round % 4 < 2) gather.emplace();
      for (unsigned i = 0; i < at_once; ++i) {
        request& b = bios[i];
        b.op = writes ? bio_op::write : bio_op::read;
        b.urgency = static_cast<bio_class>((i + thread) % 3);
        b.offset_bytes = (round / 2 % 4 * 64 + thread * at_once + i) * 512;
        b.segment_count = 0;
        b.length_bytes = 0;
        memory[i].fill(static_cast<std::byte>(writes ? round + i : 0));
        b.add(memory[i].data(), 512);
        b.private_data = &all;
        b.run = [](completion& c) noexcept {
          auto& of = *static_cast<batch*>(static_cast<request&>(c).private_data);
          if (c.status != 0) of.error = c.status;
          if (--of.left == 0) of.resume.handle.resume();
        };
        d.submit(b);
      }
    });
    EXPECT_EQ(all.error, 0);
    for (unsigned i = 0; i < at_once && !writes; ++i) {
      EXPECT_EQ(memory[i][0], static_cast<std::byte>(round - 1 + i));
      EXPECT_EQ(memory[i][511], static_cast<std::byte>(round - 1 + i));
    }
  }
  co_return result<>{};
}

TEST(request_queue, threads_share_its_places) {
  memory_device below(1u << 20);
  slow_device lower(below, 20'000);
  request_queue queue(lower, {.in_flight_max = 3});
  run_on_loops(3, [&](unsigned thread) {
    task_list tasks;
    tasks.push_back(work_of_a_thread(queue, thread, 40));
    return tasks;
  });
  EXPECT_LE(lower.most_under_way(), 3u);
  EXPECT_EQ(lower.broken_rules(), 0u);
  const request_queue_statistics s = queue.statistics();
  EXPECT_EQ(s.in_flight, 0u);
  EXPECT_EQ(s.in_flight_max, 3u);
  for (const auto& c : s.classes) {
    EXPECT_EQ(c.waiting, 0u);
    EXPECT_GT(c.waited, 0u);
  }
}

}  // namespace
}  // namespace forebay
