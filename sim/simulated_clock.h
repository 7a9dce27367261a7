// Simulated time: a clock that stands still but for events, which happen in the order of their time
// and, at the same time, in the order in which they were made.
//
//    at(when, what) ──> | 10 ns: a | 10 ns: b | 25 ns: c | …  ──> run_next(): a; the time is 10 ns
//
// Everything that is simulated together has one clock, and is the same each time that it is run.
// Not for more than one thread at a time.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

namespace forebay {

class simulated_clock {
 public:
  using action = std::function<void()>;

  simulated_clock() = default;
  simulated_clock(const simulated_clock&) = delete;
  simulated_clock& operator=(const simulated_clock&) = delete;

  std::uint64_t now_ns() const noexcept { return now_ns_; }

  // What is of the past happens next.
  void at(std::uint64_t when_ns, action what) {
    events_.push_back({std::max(when_ns, now_ns_), made_++, std::move(what)});
    std::ranges::push_heap(events_, later());
  }
  void after(std::uint64_t length_ns, action what) { at(now_ns_ + length_ns, std::move(what)); }

  bool idle() const noexcept { return events_.empty(); }

  // The next event, if it is due by then. False if it is not: the time is `until_ns` then, or what
  // it was if that is later.
  bool run_next(std::uint64_t until_ns) {
    if (events_.empty() || events_.front().when_ns > until_ns) {
      now_ns_ = std::max(now_ns_, until_ns);
      return false;
    }
    std::ranges::pop_heap(events_, later());
    event e = std::move(events_.back());
    events_.pop_back();
    now_ns_ = e.when_ns;
    e.what();
    return true;
  }
  void run_until(std::uint64_t until_ns) {
    while (run_next(until_ns)) {
    }
  }

 private:
  struct event {
    std::uint64_t when_ns;
    std::uint64_t number;
    action what;
  };
  struct later {
    bool operator()(const event& a, const event& b) const noexcept {
      return a.when_ns != b.when_ns ? a.when_ns > b.when_ns : a.number > b.number;
    }
  };

  std::uint64_t now_ns_ = 0;
  std::uint64_t made_ = 0;
  std::vector<event> events_;  // a heap, the next one at the front
};

}  // namespace forebay
