// How many requests and how many bytes a second an export may be asked for, by all of its clients
// together: two leaky buckets and one line before them.
//
//   place p{.bytes = n};
//   while (const std::uint64_t ns = limit.ask(p, now())) { ...wait for ns, at most... }
//   ...the request begins; or limit.leave(p), if it is not wanted any more...
//
//                        burst
//            ├────────────────────────────┤
//   ─────────┼──────┬──────┬──────┬───────┼─────> time
//           now     #3     #4     #5     `empty_ns`: when what was let in would be done at the rate
//
// A bucket is the time at which what it has let in has run out of it (the generic cell rate
// algorithm, ITU-T I.371, virtual scheduling). A request may begin when that is no further away
// than the burst, whatever its own size, and moves it by what it costs. So over any time W at most
// rate * (W + burst) begins, and the last request of it beyond that: as long as those who wait look
// in time. Who looks late begins late, and does not hold up those behind it.
//
// Who has to wait gets a place at once: the time at which it begins, behind all who asked before,
// on whatever thread. There is no hand-over and no timer here: who waits looks again by then, and
// often enough to see that the limits have changed. Everybody asks for a new place then, in the
// order in which they look.
//
// A place that is left is given back to who comes next; who has one keeps it.
//
// Thread-safe; lock_ is a leaf, and taken only where there is a limit.
#pragma once

#include <atomic>
#include <cstdint>

#include "forebay/os/mutex.h"

namespace forebay {

struct rate_limits {
  std::uint64_t requests_per_s = 0;  // 0: any number
  std::uint64_t bytes_per_s = 0;     // the same
  std::uint64_t burst_ns = 100'000'000;
};

struct rate_statistics {
  std::uint64_t throttled = 0;  // requests that had to wait
  std::uint64_t waiting = 0;    // that do now
  std::uint64_t waited_ns = 0;  // by those that do not any more
};

class rate_limit {
 public:
  // Who waits looks again at least so often.
  static constexpr std::uint64_t look_again_ns = 100'000'000;
  static constexpr std::uint64_t requests_per_s_max = 1'000'000'000;
  // A long request would wait for hours at less.
  static constexpr std::uint64_t bytes_per_s_min = 64u << 10;
  static constexpr std::uint64_t bytes_per_s_max = 1ull << 40;
  static constexpr std::uint64_t burst_ns_max = 3'600'000'000'000;

  // A request's, from its first question to its begin.
  struct place {
    std::uint64_t bytes = 0;  // that it is about; of more than 4 GiB as many are counted
    std::uint64_t start_ns = 0;
    std::uint64_t since_ns = 0;    // when it began to wait; 0: it does not
    std::uint32_t generation = 0;  // of the limits that it has it by; 0: none yet
  };

  // Whether there is a limit at all: without one nobody needs to ask. Any thread.
  bool applies() const noexcept {
    return applies_.load(std::memory_order_relaxed);  // relaxed: who asks looks under lock_
  }

  // Other limits from now on. What was asked for so far is forgotten.
  void set(const rate_limits& limits) noexcept;
  rate_limits limits() const noexcept;
  rate_statistics statistics() const noexcept;

  // 0: the request begins now, and `p` is used up. Else it asks again after so many nanoseconds, or
  // leaves.
  std::uint64_t ask(place& p, std::uint64_t now_ns) noexcept;
  // The request does not begin.
  void leave(place& p, std::uint64_t now_ns) noexcept;
  // It begins before its time, which those who come next wait for.
  void begin_early(place& p, std::uint64_t now_ns) noexcept;

 private:
  // Nanoseconds that a request takes of each bucket.
  struct cost {
    std::uint64_t request = 0;
    std::uint64_t bytes = 0;
  };
  cost cost_of(const place& p) const noexcept FOREBAY_REQUIRES(lock_);
  void line_up(place& p, std::uint64_t now_ns) noexcept FOREBAY_REQUIRES(lock_);
  void end(place& p, std::uint64_t now_ns) noexcept FOREBAY_REQUIRES(lock_);

  std::atomic<bool> applies_{false};  // changes under lock_
  mutable mutex lock_;
  rate_limits limits_ FOREBAY_GUARDED_BY(lock_);
  std::uint32_t generation_ FOREBAY_GUARDED_BY(lock_) = 1;
  // When what was let in is done; of a bucket without a limit nothing is counted.
  std::uint64_t requests_empty_ns_ FOREBAY_GUARDED_BY(lock_) = 0;
  std::uint64_t bytes_empty_ns_ FOREBAY_GUARDED_BY(lock_) = 0;
  rate_statistics statistics_ FOREBAY_GUARDED_BY(lock_);
};

}  // namespace forebay
