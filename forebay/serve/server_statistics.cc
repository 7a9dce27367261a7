#include "forebay/serve/server_statistics.h"

#include <nlohmann/json.hpp>

#include "forebay/base/version.h"
#include "forebay/serve/memory_statistics.h"
#include "forebay/serve/server.h"

namespace forebay {
namespace {

using json = nlohmann::ordered_json;

constexpr std::array<const char*, nbd_export::command_count> command_names = {
    "read", "write", "disconnect", "flush", "trim", "cache", "write_zeroes", "block_status"};

// [bytes of a cache, its miss ratio] in rising order, without those that tell nothing new.
json curve_json(page_cache& cache) {
  constexpr double new_to_tell = 0.0005;
  const miss_ratio_estimate e = cache.miss_ratios();
  json points = json::array();
  double told = 2;
  for (std::size_t i = 0; i < e.points.size(); ++i) {
    const auto& [pages, ratio] = e.points[i];
    if (told - ratio < new_to_tell && i + 1 != e.points.size()) continue;
    told = ratio;
    points.push_back({pages * page_bytes, ratio});
  }
  return {{"sample_rate", e.rate},
          {"sampled_pages", e.sampled_pages},
          {"sampled_accesses", e.sampled_accesses},
          {"estimator_bytes", e.bytes},
          {"points", std::move(points)}};
}

json cache_json(page_cache& cache, const pressure_statistics& memory) {
  const page_cache_statistics s = cache.statistics();
  const std::uint64_t lookups = s.hits + s.misses;
  return {
      {"capacity_bytes", memory.ceiling_bytes},
      {"capacity_pages", memory.ceiling_bytes / page_bytes},
      {"reserved_bytes", s.capacity_bytes},
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
      {"miss_ratio_curve", curve_json(cache)},
  };
}

json warm_json(const warm_store& warm) {
  const warm_statistics& s = warm.statistics();
  return {{"file", warm.path()},
          {"was_clean", s.was_clean},
          {"recovered_pages", s.recovered_pages},
          {"dirty_pages", s.dirty_pages},
          {"dropped_pages", s.dropped_pages},
          {"written_back_pages", s.written_back_pages},
          {"recovery_us", s.recovery_ns / 1000}};
}

json pressure_json(const pressure_monitor& monitor, const pressure_statistics& s,
                   shrinker_registry& shrinkers) {
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
      {"capacity_bytes", s.ceiling_bytes},
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
  // [the longest that a bucket counts, how many it has], without empty ones: two looks at these
  // tell the latencies in between.
  json buckets = json::array();
  for (unsigned b = 0; b < histogram::bucket_count; ++b) {
    if (const std::uint64_t n = latency.count_of(b); n != 0) {
      buckets.push_back({histogram::bucket_top(b), n});
    }
  }
  return {{"count", requests},
          {"bytes", bytes},
          {"errors", errors},
          {"p50_us", microseconds(0.5)},
          {"p90_us", microseconds(0.9)},
          {"p99_us", microseconds(0.99)},
          {"p999_us", microseconds(0.999)},
          {"latency_ns", std::move(buckets)}};
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

json vhost_json(nbd_export& e) {
  vhost_statistics& s = e.vhost();
  return {{"connections", s.connections.value()},
          {"queues", s.queues.value()},
          {"kicks", s.kicks.value()},
          {"calls", s.calls.value()},
          {"messages_refused", s.messages_refused.value()},
          {"chains_refused", s.chains_refused.value()},
          {"rings_broken", s.rings_broken.value()}};
}

json limits_json(nbd_export& e) {
  const rate_limits l = e.rate().limits();
  const rate_statistics s = e.rate().statistics();
  return {{"requests_per_s", l.requests_per_s},
          {"bytes_per_s", l.bytes_per_s},
          {"burst_s", static_cast<double>(l.burst_ns) / 1e9},
          {"throttled", s.throttled},
          {"waiting", s.waiting},
          {"waited_s", static_cast<double>(s.waited_ns) / 1e9},
          {"memory_bytes", e.space().memory_limit_bytes()}};
}

// Bytes of payload that were copied, and for each that was read or written.
json copied_json(std::span<nbd_export* const> exports) {
  constexpr std::array<const char*, payload_copies> names = {"write", "aside", "moved", "tls",
                                                             "guest"};
  json where = json::object();
  std::int64_t all = 0;
  std::int64_t served = 0;
  for (std::size_t i = 0; i < names.size(); ++i) {
    std::int64_t bytes = 0;
    for (nbd_export* e : exports) bytes += e->copied(static_cast<payload_copy>(i)).value();
    where[names[i]] = bytes;
    all += bytes;
  }
  for (nbd_export* e : exports) {
    served += e->of(nbd::command::read).bytes.value() + e->of(nbd::command::write).bytes.value();
  }
  return {{"bytes", all},
          {"served_bytes", served},
          {"per_byte", served == 0 ? 0.0 : static_cast<double>(all) / static_cast<double>(served)},
          {"where", std::move(where)}};
}

json client_numbers(const client_report& r) {
  return {{"requests", r.requests},
          {"read_bytes", r.read_bytes},
          {"written_bytes", r.written_bytes},
          {"requests_in_flight", r.in_flight}};
}

// The most active clients, and the others together.
json clients_json(std::span<nbd_export* const> exports) {
  client_reports reports;
  for (nbd_export* e : exports) e->clients().report(reports, e->name());
  const std::uint64_t now_ns = monotonic_clock::now_ns();
  json list = json::array();
  for (const client_report& r : std::span(reports.first).first(reports.count)) {
    json one = {{"id", r.id},
                {"peer", r.peer.data()},
                {"export", *r.exported},
                {"door", r.door == client_door::nbd ? "nbd" : "vhost-user"},
                {"connected_s", static_cast<double>(now_ns - std::min(now_ns, r.since_ns)) / 1e9}};
    one.update(client_numbers(r));
    list.push_back(std::move(one));
  }
  json others = {{"count", reports.others}};
  others.update(client_numbers(reports.sum));
  return {{"most_active", std::move(list)}, {"others", std::move(others)}};
}

json export_json(nbd_export& e) {
  nbd_export* const one[] = {&e};
  return {{"name", e.name()},
          {"description", e.options().description},
          {"size", e.size_bytes()},
          {"read_only", e.is_read_only()},
          {"block_bytes", e.options().min_block_bytes},
          {"direct", e.dev().limits().direct},
          {"resident_pages", e.space().share().pages()},
          {"dirty_pages", e.space().dirty_pages()},
          {"requests_in_flight", e.in_flight().value()},
          {"write_policy", e.options().write_through ? "write-through" : "write-back"},
          {"limits", limits_json(e)},
          {"queue", queue_json(e.queue())},
          {"vhost_user", vhost_json(e)},
          {"copied", copied_json(one)},
          {"commands", commands_json(one)}};
}

}  // namespace

json statistics_of(server& of) {
  const std::vector<nbd_export*> all = of.exports();
  json exports_list = json::array();
  std::int64_t in_flight = 0;
  for (nbd_export* e : all) {
    exports_list.push_back(export_json(*e));
    in_flight += e->in_flight().value();
  }
  const server_statistics s = of.statistics();
  const pressure_statistics pressure = of.monitor().statistics();
  const auto failed = [&s](client_failure why) {
    return s.clients_failed[static_cast<std::size_t>(why)];
  };
  json j = {
      {"version", version},
      {"uptime_s", s.uptime_s},
      {"threads", s.threads},
      {"clients", s.clients},
      {"clients_by_thread", s.clients_by_thread},
      {"clients_total", s.clients_total},
      {"clients_refused", s.clients_refused},
      {"clients_failed",
       {{"tls", failed(client_failure::tls)},
        {"handshake_timeout", failed(client_failure::handshake_timeout)},
        {"send_timeout", failed(client_failure::send_timeout)},
        {"idle_timeout", failed(client_failure::idle_timeout)}}},
      {"requests_in_flight", in_flight},
      {"cache", cache_json(of.cache(), pressure)},
      {"memory", memory_json()},
      {"pressure", pressure_json(of.monitor(), pressure, of.shrinkers())},
      {"commands", commands_json(all)},
      {"copied", copied_json(all)},
      {"exports", exports_list},
      {"client_list", clients_json(all)},
  };
  if (const warm_store* const warm = of.cache().warm()) j["warm"] = warm_json(*warm);
  return j;
}

std::string text_of_json(const json& j) {
  return j.dump(-1, ' ', false, json::error_handler_t::replace);
}

std::string server::statistics_text() { return text_of_json(statistics_of(*this)); }

double miss_ratio_at(const json& points, double cache_bytes) {
  double last_bytes = 0;
  double last_ratio = 1;
  for (const json& p : points) {
    const auto at = p[0].get<double>();
    const auto ratio = p[1].get<double>();
    if (at >= cache_bytes) {
      return last_ratio + (ratio - last_ratio) * (cache_bytes - last_bytes) / (at - last_bytes);
    }
    last_bytes = at;
    last_ratio = ratio;
  }
  return last_ratio;
}

}  // namespace forebay
