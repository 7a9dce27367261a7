// What the tests of the layers block and cache share: a device that takes its time, and work on
// several event loops at once.
#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <barrier>
#include <cstring>
#include <functional>
#include <list>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "forebay/base/assert.h"
#include "forebay/block/device.h"
#include "forebay/os/mutex.h"
#include "forebay/ring/loop.h"

namespace forebay {

// Passes bios on to another device late and in random order, by a timer of the submitting thread,
// and watches that whoever submits keeps the rules of the cache while they are under way:
//  - the memory of a write does not change (stable pages);
//  - no two writes, and no read and write, are under way for the same bytes of the device.
class slow_device final : public device {
 public:
  slow_device(device& below, std::uint64_t delay_max_ns, std::uint64_t seed = 1)
      : below_(below), delay_max_ns_(delay_max_ns), rng_(seed) {}

  const device_limits& limits() const noexcept override { return below_.limits(); }
  result<file_extent> extent_at(std::uint64_t offset_bytes) const override {
    return below_.extent_at(offset_bytes);
  }

  void submit(bio& b) noexcept override {
    auto d = std::make_unique<delayed>();
    d->self = this;
    d->original = &b;
    copy_segments(b, d->snapshot);
    {
      const scoped_lock hold(lock_);
      for (const delayed* other : under_way_) check_against(b, *other->original);
      under_way_.push_back(d.get());
      most_ = std::max(most_, under_way_.size());
      d->when.deadline_ns = monotonic_clock::now_ns() + 1 + rng_() % delay_max_ns_;
    }
    d->when.done = d.get();
    d->run = [](completion& c) noexcept {
      const std::unique_ptr<delayed> late(static_cast<delayed*>(&c));
      late->self->go_on(*late);
    };
    executor::current()->start(d.release()->when);
  }

  std::size_t most_under_way() const {
    const scoped_lock hold(lock_);
    return most_;
  }
  std::uint64_t broken_rules() const {
    const scoped_lock hold(lock_);
    return broken_rules_;
  }

 private:
  struct delayed : completion {
    slow_device* self = nullptr;
    bio* original = nullptr;
    std::vector<std::byte> snapshot;  // what a write was to write when it was submitted
    timer when;
  };

  static void copy_segments(const bio& b, std::vector<std::byte>& out) {
    if (b.op != bio_op::write) return;
    for (const iovec& s : b.used_segments()) {
      const auto* data = static_cast<const std::byte*>(s.iov_base);
      out.insert(out.end(), data, data + s.iov_len);
    }
  }

  void check_against(const bio& b, const bio& other) FOREBAY_REQUIRES(lock_) {
    const auto transfers = [](const bio& x) {
      return x.op == bio_op::read || x.op == bio_op::write;
    };
    if (!transfers(b) || !transfers(other)) return;
    if (b.op == bio_op::read && other.op == bio_op::read) return;
    if (b.offset_bytes < other.end_bytes() && other.offset_bytes < b.end_bytes()) ++broken_rules_;
  }

  void go_on(const delayed& d) noexcept {
    bio& b = *d.original;
    std::vector<std::byte> now;
    copy_segments(b, now);
    {
      const scoped_lock hold(lock_);
      if (now != d.snapshot) ++broken_rules_;
      std::erase(under_way_, &d);
    }
    below_.submit(b);
  }

  device& below_;
  const std::uint64_t delay_max_ns_;
  mutable mutex lock_;
  std::mt19937_64 rng_ FOREBAY_GUARDED_BY(lock_);
  std::vector<const delayed*> under_way_ FOREBAY_GUARDED_BY(lock_);
  std::size_t most_ FOREBAY_GUARDED_BY(lock_) = 0;
  std::uint64_t broken_rules_ FOREBAY_GUARDED_BY(lock_) = 0;
};

using task_list = std::list<task<>>;

// Runs what `make(t)` returns on an event loop of thread t, for t below `threads`, all tasks of a
// thread at once, until all have ended.
inline void run_on_loops(unsigned threads, const std::function<task_list(unsigned)>& make,
                         const std::function<void(loop&)>& prepare = {}) {
  struct starter : completion {
    std::function<void()> work;
  };
  struct closer {
    static task<> close(task_group& group) {
      co_await group.idle();
      loop::current()->stop();
      co_return result<>{};
    }
  };
  // No loop goes before all have ended: a thread that wakes another one touches its loop.
  std::barrier all_ended(static_cast<std::ptrdiff_t>(threads));
  std::vector<std::jthread> running;
  for (unsigned t = 0; t < threads; ++t) {
    running.emplace_back([&, t] {
      auto created = loop::create(64);
      FOREBAY_ASSERT(created.has_value());
      loop& here = **created;
      if (prepare) prepare(here);
      task_group group;
      task_group close_group;
      starter start;
      start.run = [](completion& c) noexcept { static_cast<starter&>(c).work(); };
      start.work = [&] {
        for (task<>& work : make(t)) FOREBAY_ASSERT(std::move(work).spawn(group));
        FOREBAY_ASSERT(closer::close(group).spawn(close_group));
      };
      here.ready(start);
      here.run();
      all_ended.arrive_and_wait();
    });
  }
}

}  // namespace forebay
