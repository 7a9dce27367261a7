#include "forebay/serve/statistics_history.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <functional>
#include <span>

namespace forebay {
namespace {

// Values of a row behind its number, in this order.
constexpr std::array columns = {
    "t",
    "seconds",  // that the row is about; what follows is of these, up to flush_p99_us
    "hits",
    "misses",
    "pages_read",     // from the devices
    "pages_written",  // by write-back
    "evictions",
    "reads",
    "read_bytes",
    "read_p50_us",  // 0 without a read, as of the others
    "read_p99_us",
    "read_p999_us",
    "writes",
    "write_bytes",
    "write_p50_us",
    "write_p99_us",
    "write_p999_us",
    "flushes",
    "flush_p50_us",
    "flush_p99_us",
    "clients",  // at the end, as is what follows
    "requests_in_flight",
    "resident_bytes",
    "dirty_bytes",
    "writeback_bytes",
    "free_bytes",
    "allowed_bytes",
};

// What a share of the requests between two looks took at most, in microseconds.
double percentile_us(std::span<const std::uint64_t> before, std::span<const std::uint64_t> after,
                     double fraction) {
  std::array<std::uint64_t, histogram::bucket_count> between;
  std::ranges::transform(after, before, between.begin(), std::minus());
  return static_cast<double>(histogram::percentile_of(between, fraction)) / 1000;
}

double bytes_of(std::uint64_t pages) { return static_cast<double>(pages * page_bytes); }

}  // namespace

statistics_history::totals statistics_history::gather() {
  totals t;
  t.time_s = server_.statistics().uptime_s;
  t.cache = server_.cache().statistics();
  for (nbd_export* const e : server_.exports()) {
    const std::array<std::pair<nbd::command, command_totals*>, 3> wanted = {
        {{nbd::command::read, &t.reads},
         {nbd::command::write, &t.writes},
         {nbd::command::flush, &t.flushes}}};
    for (const auto& [what, sum] : wanted) {
      const command_statistics& s = e->of(what);
      const std::uint64_t requests = value_of(s.requests);
      if (requests == 0) continue;
      sum->requests += requests;
      sum->bytes += value_of(s.bytes);
      for (unsigned b = 0; b < histogram::bucket_count; ++b) {
        sum->buckets[b] += s.latency_ns.count_of(b);
      }
    }
  }
  return t;
}

void statistics_history::take() {
  totals now = gather();
  const page_cache_statistics& c = now.cache;
  const page_cache_statistics& was = last_.cache;
  // A miss that was first taken for a hit is taken back later, so the difference may be below 0.
  const auto since = [](std::uint64_t a, std::uint64_t b) {
    return std::max(static_cast<double>(static_cast<std::int64_t>(a - b)), 0.0);
  };
  std::int64_t in_flight = 0;
  for (nbd_export* const e : server_.exports()) in_flight += e->in_flight().value();
  const auto latency = [](const command_totals& a, const command_totals& b, double f) {
    return percentile_us(a.buckets, b.buckets, f);
  };
  row fresh{taken_ + 1,
            {now.time_s,
             now.time_s - last_.time_s,
             since(c.hits, was.hits),
             since(c.misses, was.misses),
             since(c.pages_read, was.pages_read),
             since(c.pages_written, was.pages_written),
             since(c.evictions, was.evictions),
             since(now.reads.requests, last_.reads.requests),
             since(now.reads.bytes, last_.reads.bytes),
             latency(last_.reads, now.reads, 0.5),
             latency(last_.reads, now.reads, 0.99),
             latency(last_.reads, now.reads, 0.999),
             since(now.writes.requests, last_.writes.requests),
             since(now.writes.bytes, last_.writes.bytes),
             latency(last_.writes, now.writes, 0.5),
             latency(last_.writes, now.writes, 0.99),
             latency(last_.writes, now.writes, 0.999),
             since(now.flushes.requests, last_.flushes.requests),
             latency(last_.flushes, now.flushes, 0.5),
             latency(last_.flushes, now.flushes, 0.99),
             static_cast<double>(server_.statistics().clients),
             static_cast<double>(in_flight),
             bytes_of(c.resident_pages),
             bytes_of(c.dirty_pages),
             bytes_of(c.writeback_pages),
             bytes_of(c.free_pages),
             bytes_of(server_.cache().allowed_pages())}};
  FOREBAY_ASSERT(fresh.values.size() == columns.size());
  rows_.push_back(std::move(fresh));
  if (rows_.size() > rows_max) rows_.pop_front();
  last_ = std::move(now);
  ++taken_;
}

std::string statistics_history::text(std::uint64_t after) const {
  std::string out = "{\"columns\":[\"row\"";
  for (const char* const name : columns) out += fmt::format(",\"{}\"", name);
  out += "],\"rows\":[";
  bool first = true;
  for (const row& r : rows_) {
    if (r.number <= after) continue;
    out += fmt::format("{}[{}", first ? "" : ",", r.number);
    for (const double v : r.values) out += fmt::format(",{:.10g}", v);
    out += ']';
    first = false;
  }
  return out + "]}";
}

}  // namespace forebay
