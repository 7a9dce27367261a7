// What a server did in each of the last seconds, for plots that begin before somebody looked.
//
// take() is called at regular times, best once a second; each call adds a row of what has happened
// since the one before, and of how things stand. The oldest rows fall off.
//
// Thread-safety: one thread, as the server runs.
#pragma once

#include <deque>
#include <string>
#include <vector>

#include "forebay/base/stats.h"
#include "forebay/serve/server.h"

namespace forebay {

class statistics_history {
 public:
  static constexpr std::size_t rows_max = 600;

  explicit statistics_history(server& of) : server_(of) {}

  // Throws std::bad_alloc: the row is missing then.
  void take();

  // JSON: {"columns": [names], "rows": [[values]]}, the rows with a number above `after`, the
  // oldest first. The first column, "row", is a row's number, from 1 on; the second, "t", when it
  // was taken, in seconds of the server's life. Throws std::bad_alloc.
  std::string text(std::uint64_t after) const;

 private:
  // Of one command, all exports together.
  struct command_totals {
    std::uint64_t requests = 0;
    std::uint64_t bytes = 0;
    std::vector<std::uint64_t> buckets = std::vector<std::uint64_t>(histogram::bucket_count);
  };
  struct totals {
    double time_s = 0;
    page_cache_statistics cache{};
    command_totals reads, writes, flushes;
  };
  struct row {
    std::uint64_t number;
    std::vector<double> values;
  };

  totals gather();

  server& server_;
  totals last_;
  std::uint64_t taken_ = 0;
  std::deque<row> rows_;
};

}  // namespace forebay
