// What happened in one execution, for the report of a failure.
#pragma once

#include <cstdint>
#include <source_location>
#include <string>
#include <vector>

#include "sim/explorer/heap.h"

namespace forebay::explorer {

struct trace_line {
  const char* what = nullptr;  // "load", "store", …
  const char* order = "";
  unsigned thread = 0;
  unsigned location = UINT32_MAX;
  std::uint64_t value = 0;  // read or written
  std::uint64_t other = 0;  // of a read-modify-write: what it wrote
  std::uint64_t from = 0;   // name of the store that was read
  std::uint64_t named = 0;  // name of the store that was made
  bool old = false;         // a newer store was there
  const char* file = "";
  unsigned line = 0;
};

class trace {
 public:
  void start() {
    lines_.clear();
    on_ = true;
  }
  void stop() noexcept { on_ = false; }
  bool on() const noexcept { return on_; }
  void add(const trace_line& line) { lines_.push_back(line); }

  // One line for each operation.
  std::string text() const;

 private:
  std::vector<trace_line, own_memory<trace_line>> lines_;
  bool on_ = false;
};

}  // namespace forebay::explorer
