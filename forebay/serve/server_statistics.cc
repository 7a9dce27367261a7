// What `forebay stat` shows: the server's statistics as JSON text.

#include <nlohmann/json.hpp>

#include "forebay/base/version.h"
#include "forebay/serve/memory_statistics.h"
#include "forebay/serve/server.h"

namespace forebay {
namespace {

using json = nlohmann::ordered_json;

constexpr std::array<const char*, nbd_export::command_count> command_names = {
    "read", "write", "disconnect", "flush", "trim", "cache", "write_zeroes", "block_status"};

json cache_json(page_cache& cache) {
  const page_cache_statistics s = cache.statistics();
  const std::uint64_t lookups = s.hits + s.misses;
  return {
      {"capacity_bytes", s.capacity_bytes},
      {"capacity_pages", s.capacity_pages},
      {"backing", to_string(cache.memory().backing())},
      {"free_pages", s.free_pages},
      {"resident_pages", s.resident_pages},
      {"dirty_pages", s.dirty_pages},
      {"writeback_pages", s.writeback_pages},
      {"error_pages", s.error_pages},
      {"dirty_limit_pages", s.dirty_limit_pages},
      {"background_limit_pages", s.background_limit_pages},
      {"hits", s.hits},
      {"misses", s.misses},
      {"hit_ratio",
       lookups == 0 ? 0.0 : static_cast<double>(s.hits) / static_cast<double>(lookups)},
      {"eviction", std::string(to_string(s.eviction))},
      {"eviction_history_bytes", s.eviction_history_bytes},
      {"evictions", s.evictions},
      {"pages_read", s.pages_read},
      {"pages_written", s.pages_written},
      {"write_errors", s.write_errors},
      {"throttled_writes", s.throttled_writes},
      {"paced_writes", s.paced_writes},
      {"frame_waits", s.frame_waits},
      {"buffer_lru_hits", s.buffer_lru_hits},
      {"buffer_lru_misses", s.buffer_lru_misses},
      {"readahead_pages", s.readahead_pages},
      {"readahead_used", s.readahead_used},
      {"readahead_wasted", s.readahead_wasted},
  };
}

json pressure_json(const pressure_monitor& monitor, shrinker_registry& shrinkers) {
  const pressure_statistics s = monitor.statistics();
  json list = json::array();
  for (const shrinker_statistics& one : shrinkers.statistics()) {
    list.push_back({{"name", one.name},
                    {"seeks", one.seeks},
                    {"count_bytes", one.count_bytes},
                    {"calls", one.calls},
                    {"scanned_bytes", one.scanned_bytes},
                    {"freed_bytes", one.freed_bytes}});
  }
  json j = {
      {"limit_bytes", s.limit_bytes},
      {"capacity_bytes", s.capacity_bytes},
      {"committed_bytes", s.committed_bytes},
      {"given_back_bytes", s.given_back_bytes},
      {"psi_events", s.psi_events},
      {"cgroup_events", s.cgroup_events},
      {"watermark_events", s.watermark_events},
      {"limit_lowered", s.limit_lowered},
      {"limit_raised", s.limit_raised},
      {"failed_shrinks", s.failed_shrinks},
      {"sources", monitor.sources()},
      {"remarks", monitor.remarks()},
      {"shrinkers", list},
  };
  if (s.has_group_limit) {
    j["group_limit_bytes"] = s.group_limit_bytes;
    j["group_usage_bytes"] = s.group_usage_bytes;
  }
  return j;
}

json command_json(std::uint64_t requests, std::uint64_t bytes, std::uint64_t errors,
                  const histogram& latency) {
  const auto microseconds = [&](double f) {
    return static_cast<double>(latency.percentile(f)) / 1000.0;
  };
  return {{"count", requests},
          {"bytes", bytes},
          {"errors", errors},
          {"p50_us", microseconds(0.5)},
          {"p90_us", microseconds(0.9)},
          {"p99_us", microseconds(0.99)},
          {"p999_us", microseconds(0.999)}};
}

json commands_json(std::span<nbd_export* const> exports) {
  json all = json::object();
  for (std::size_t i = 0; i < command_names.size(); ++i) {
    const auto what = static_cast<nbd::command>(i);
    if (what == nbd::command::disconnect) continue;
    std::int64_t requests = 0;
    std::int64_t bytes = 0;
    std::int64_t errors = 0;
    const auto latency = std::make_unique<histogram>();
    for (nbd_export* e : exports) {
      command_statistics& s = e->of(what);
      requests += s.requests.value();
      bytes += s.bytes.value();
      errors += s.errors.value();
      latency->merge(s.latency_ns);
    }
    all[command_names[i]] =
        command_json(static_cast<std::uint64_t>(requests), static_cast<std::uint64_t>(bytes),
                     static_cast<std::uint64_t>(errors), *latency);
  }
  return all;
}

json queue_json(const request_queue& queue) {
  constexpr std::array<const char*, bio_class_count> class_names = {"demand", "write_back",
                                                                    "read_ahead"};
  const request_queue_statistics s = queue.statistics();
  json classes = json::object();
  for (std::size_t c = 0; c < bio_class_count; ++c) {
    const request_queue_statistics::of_class& of = s.classes[c];
    classes[class_names[c]] = {{"waited", of.waited},
                               {"waiting", of.waiting},
                               {"refused", of.refused},
                               {"wait_p50_us", static_cast<double>(of.wait_p50_ns) / 1000.0},
                               {"wait_p99_us", static_cast<double>(of.wait_p99_ns) / 1000.0}};
  }
  return {{"requests", s.requests},
          {"merged_back", s.merged_back},
          {"merged_front", s.merged_front},
          {"redone", s.redone},
          {"splits", s.splits},
          {"pieces", s.pieces},
          {"in_flight", s.in_flight},
          {"in_flight_max", s.in_flight_max},
          {"in_flight_limit", s.in_flight_limit},
          {"classes", classes}};
}

json export_json(nbd_export& e) {
  nbd_export* const one[] = {&e};
  return {{"name", e.name()},
          {"description", e.options().description},
          {"size", e.size_bytes()},
          {"read_only", e.is_read_only()},
          {"block_bytes", e.options().min_block_bytes},
          {"direct", e.dev().limits().direct},
          {"requests_in_flight", e.in_flight().value()},
          {"write_policy", e.options().write_through ? "write-through" : "write-back"},
          {"queue", queue_json(e.queue())},
          {"commands", commands_json(one)}};
}

}  // namespace

std::string server::statistics_text() {
  const std::vector<nbd_export*> all = exports();
  json exports_list = json::array();
  std::int64_t in_flight = 0;
  for (nbd_export* e : all) {
    exports_list.push_back(export_json(*e));
    in_flight += e->in_flight().value();
  }
  const json j = {
      {"version", version},
      {"uptime_s", static_cast<double>(monotonic_clock::now_ns() - started_ns_) / 1e9},
      {"threads", options_.threads},
      // relaxed: statistics.
      {"clients", clients_.load(std::memory_order_relaxed)},
      {"clients_total", clients_total_.load(std::memory_order_relaxed)},  // relaxed: a statistic
      {"clients_refused",
       clients_refused_.load(std::memory_order_relaxed)},  // relaxed: a statistic
      {"requests_in_flight", in_flight},
      {"cache", cache_json(*cache_)},
      {"memory", memory_json()},
      {"pressure", pressure_json(*monitor_, shrinkers_)},
      {"commands", commands_json(all)},
      {"exports", exports_list},
  };
  return j.dump(-1, ' ', false, json::error_handler_t::replace);
}

}  // namespace forebay
