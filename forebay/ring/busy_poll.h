// Whether a wait begins with a look that goes on for a moment, before it sleeps.
//
// To sleep and be woken costs a processor some microseconds and the wait many more: on a virtual
// machine, whose idle processor is halted, several tens. A wait that ends within that time is
// better spent looking. One that does not has only cost; so what a look found decides how soon the
// next one comes: each in vain doubles the number of waits that sleep at once, up to `pause_max`,
// each success halves it. An idle server sleeps.
//
// Belongs to one thread.
#pragma once

#include <algorithm>
#include <cstdint>

namespace forebay {

class busy_poll {
 public:
  // How long a look goes on; 0: there is none.
  explicit busy_poll(std::uint64_t length_ns = 0) noexcept : length_ns_(length_ns) {}

  std::uint64_t length_ns() const noexcept { return length_ns_; }

  // Whether the wait that comes now begins with a look; found() follows if there was one.
  bool wanted() noexcept {
    if (length_ns_ == 0) return false;
    if (pause_ == 0) return true;
    --pause_;
    return false;
  }

  // What the look ended with: something to do, or its time.
  void found(bool something) noexcept {
    ++looks_;
    successes_ += something ? 1 : 0;
    if (something) {
      failures_ -= failures_ != 0 ? 1 : 0;
    } else {
      failures_ = std::min(failures_ + 1, failures_max);
    }
    pause_ = (1u << failures_) - 1;
  }

  std::uint64_t looks() const noexcept { return looks_; }
  std::uint64_t successes() const noexcept { return successes_; }

  static constexpr unsigned failures_max = 10;
  static constexpr unsigned pause_max = (1u << failures_max) - 1;

 private:
  std::uint64_t length_ns_;
  unsigned failures_ = 0;  // in vain, less those that were not
  unsigned pause_ = 0;     // waits until the next look
  std::uint64_t looks_ = 0;
  std::uint64_t successes_ = 0;
};

}  // namespace forebay
