// The choices that make one execution differ from another, and the order in which they are gone
// through.
//
// An execution asks choose(n) wherever it could go on in n ways; the answers, in their order, are
// all that it needs to be run again. Depth-first: the next execution gives the same answers but for
// the last one that has another left, and the first of each from there on. Random: answers come
// from a generator. Replay: from a given string, and the first of each behind its end.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "sim/explorer/heap.h"

namespace forebay::explorer {

// xoshiro256** would be better and is not needed: a generator of choices (Marsaglia 2003, xorshift;
// the multiplication is Vigna's).
class generator {
 public:
  explicit generator(std::uint64_t seed) noexcept : state_(seed * 0x9e37'79b9'7f4a'7c15 + 1) {}

  std::uint64_t next() noexcept {
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return state_ * 0x2545'f491'4f6c'dd1d;
  }
  // 0 to n - 1.
  unsigned below(unsigned n) noexcept { return static_cast<unsigned>(((next() >> 32) * n) >> 32); }

 private:
  std::uint64_t state_;
};

class choices {
 public:
  // From the start of the next execution.
  void begin() noexcept { at_ = 0; }
  void clear() noexcept {
    taken_.clear();
    at_ = 0;
  }

  // Whether the next choice is one that an earlier execution has made already.
  bool repeats() const noexcept { return at_ < taken_.size(); }

  // 0 to n - 1; n is at least 2 and at most 255.
  unsigned choose(unsigned n) {
    if (at_ == taken_.size()) taken_.push_back({0, static_cast<std::uint8_t>(n)});
    return taken_[at_++].answer;
  }
  // The same, with an answer that was drawn by lot unless this repeats.
  unsigned choose(unsigned n, unsigned drawn) {
    if (at_ == taken_.size()) {
      taken_.push_back({static_cast<std::uint8_t>(drawn), static_cast<std::uint8_t>(n)});
    }
    return taken_[at_++].answer;
  }

  // Depth-first: on to the next execution; false if there is none.
  bool advance() noexcept {
    taken_.resize(at_);
    while (!taken_.empty() && taken_.back().answer + 1 == taken_.back().of) taken_.pop_back();
    if (taken_.empty()) return false;
    ++taken_.back().answer;
    return true;
  }

  // One letter or digit for each answer, without the noughts at the end: "1 0 0 2 0" is "1002".
  std::string text() const;
  // Repeats the execution that text() came from.
  void replay(std::string_view text);

 private:
  struct choice {
    std::uint8_t answer;
    std::uint8_t of;  // how many answers there are
  };

  std::vector<choice, own_memory<choice>> taken_;
  std::size_t at_ = 0;
};

}  // namespace forebay::explorer
