#include "forebay/serve/metrics.h"

#include <fmt/format.h>

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <span>
#include <string_view>
#include <utility>

#include "forebay/memory/page.h"
#include "forebay/serve/server_statistics.h"

namespace forebay {
namespace {

using json = nlohmann::ordered_json;

constexpr unsigned bound_first = 10;  // 2^10 ns
constexpr unsigned bound_last = 35;

// How many bytes the character at the front has in UTF-8; 0 if it is none (RFC 3629, 4).
std::size_t utf8_bytes(std::string_view text) noexcept {
  const auto at = [&](std::size_t i) noexcept -> unsigned {
    return i < text.size() ? static_cast<unsigned char>(text[i]) : 0;
  };
  const auto follows = [&](std::size_t i) noexcept { return (at(i) & 0xc0) == 0x80; };
  const unsigned first = at(0);
  if (first < 0x80) return 1;
  if (first < 0xc2 || first > 0xf4 || !follows(1)) return 0;
  if (first < 0xe0) return 2;
  if (!follows(2)) return 0;
  // Neither what a shorter one could say nor a surrogate.
  if (first < 0xf0) {
    return (first == 0xe0 && at(1) < 0xa0) || (first == 0xed && at(1) >= 0xa0) ? 0 : 3;
  }
  if (!follows(3) || (first == 0xf0 && at(1) < 0x90) || (first == 0xf4 && at(1) >= 0x90)) return 0;
  return 4;
}

// A label's value as it stands between quotes: UTF-8, which a file's name need not be.
std::string escaped(std::string_view value) {
  std::string out;
  while (!value.empty()) {
    const std::size_t bytes = utf8_bytes(value);
    const char c = value.front();
    if (bytes == 0) {
      out += "\xef\xbf\xbd";  // U+FFFD, for each byte
    } else if (c == '\n') {
      out += "\\n";
    } else {
      if (c == '\\' || c == '"') out += '\\';
      out += value.substr(0, bytes);
    }
    value.remove_prefix(std::max<std::size_t>(bytes, 1));
  }
  return out;
}

using label = std::pair<const char*, std::string>;

class metric_writer {
 public:
  // Starts a family; the samples that follow are its own. `type`: counter, gauge, histogram.
  void family(const char* name, const char* type, const char* help) {
    name_ = name;
    fmt::format_to(std::back_inserter(text_), "# HELP forebay_{} {}\n# TYPE forebay_{} {}\n", name,
                   help, name, type);
  }
  void sample(double value, std::span<const label> labels = {}, const char* suffix = "") {
    fmt::format_to(std::back_inserter(text_), "forebay_{}{}", name_, suffix);
    for (std::size_t i = 0; i < labels.size(); ++i) {
      fmt::format_to(std::back_inserter(text_), "{}{}=\"{}\"", i == 0 ? '{' : ',', labels[i].first,
                     escaped(labels[i].second));
    }
    fmt::format_to(std::back_inserter(text_), "{} {}\n", labels.empty() ? "" : "}", value);
  }
  std::string take() { return std::move(text_); }

 private:
  const char* name_ = "";
  std::string text_;
};

// A family that is one number of the statistics.
struct single {
  const char* key;
  const char* name;
  const char* help;
  double times = 1;

  bool counts() const { return std::string_view(name).ends_with("_total"); }
};

constexpr auto a_page = static_cast<double>(page_bytes);

constexpr single of_server[] = {
    {"uptime_s", "uptime_seconds", "Time since the server's start."},
    {"threads", "threads", "Event loops."},
    {"clients", "clients", "Clients that are connected."},
    {"clients_total", "clients_total", "Clients that were accepted."},
    {"clients_refused", "clients_refused_total", "Clients that were turned away."},
};

constexpr single of_cache[] = {
    {"capacity_bytes", "cache_capacity_bytes", "Size of the cache."},
    {"free_pages", "cache_free_bytes", "Frames that hold nothing.", a_page},
    {"resident_pages", "cache_resident_bytes", "Pages in the cache.", a_page},
    {"dirty_pages", "cache_dirty_bytes", "Pages that wait for write-back.", a_page},
    {"writeback_pages", "cache_writeback_bytes", "Pages that are being written.", a_page},
    {"error_pages", "cache_unwritable_bytes", "Dirty pages whose last write failed.", a_page},
    {"dirty_limit_pages", "cache_dirty_limit_bytes", "Where writers wait.", a_page},
    {"background_limit_pages", "cache_background_limit_bytes", "Where write-back begins.", a_page},
    {"hits", "cache_hits_total", "Pages that were found."},
    {"misses", "cache_misses_total", "Pages that had to be read or made."},
    {"evictions", "cache_evictions_total", "Pages that were given up."},
    {"pages_read", "cache_read_bytes_total", "Filled from the devices.", a_page},
    {"pages_written", "cache_written_bytes_total", "Written back to the devices.", a_page},
    {"write_errors", "cache_write_errors_total", "Pages whose write-back failed."},
    {"throttled_writes", "cache_throttled_writes_total", "Times a writer met the dirty limit."},
    {"paced_writes", "cache_paced_writes_total", "Times a writer was slowed."},
    {"frame_waits", "cache_frame_waits_total", "Times there was no frame to take."},
    {"readahead_pages", "cache_readahead_bytes_total", "Read before it was asked for.", a_page},
    {"readahead_used", "cache_readahead_used_bytes_total", "Of these: asked for since.", a_page},
    {"readahead_wasted", "cache_readahead_wasted_bytes_total", "Of these: evicted unused.", a_page},
};

constexpr single of_pressure[] = {
    {"limit_bytes", "memory_limit_bytes", "What the cache may take at present."},
    {"committed_bytes", "memory_committed_bytes", "What the cache has memory for."},
    {"given_back_bytes", "memory_given_back_bytes_total", "Given back when memory was short."},
    {"failed_shrinks", "memory_failed_shrinks_total", "Times not enough could be given back."},
};

constexpr single of_export[] = {
    {"size", "export_size_bytes", "Size of the image."},
    {"resident_pages", "export_resident_bytes", "Of the image, in the cache.", a_page},
    {"dirty_pages", "export_dirty_bytes", "Of the image, waiting for write-back.", a_page},
    {"requests_in_flight", "export_requests_in_flight", "Requests that are being worked on."},
};

constexpr single of_limits[] = {
    {"requests_per_s", "export_limit_requests", "Requests that may begin in a second; 0: any."},
    {"bytes_per_s", "export_limit_bytes", "Of their bytes the same."},
    {"throttled", "export_throttled_total", "Requests that waited for the limit."},
    {"waiting", "export_throttled", "Requests that wait for it."},
    {"waited_s", "export_throttled_seconds_total", "For how long they have waited."},
    {"memory_bytes", "export_limit_memory_bytes", "Of the cache that it may have; 0: any."},
};

constexpr single of_queue[] = {
    {"requests", "device_requests_total", "Requests to the device."},
    {"merged_back", "device_merged_back_total", "Bios that continued a request."},
    {"merged_front", "device_merged_front_total", "Bios that a request continued."},
    {"splits", "device_splits_total", "Bios that were cut."},
    {"in_flight", "device_requests_in_flight", "Requests that the device works on."},
};

constexpr single of_class[] = {
    {"waited", "device_waits_total", "Requests that found no place at once."},
    {"waiting", "device_waiting", "Requests that wait for a place."},
    {"refused", "device_refused_total", "Requests that were dropped because too many waited."},
};

constexpr single of_vhost[] = {
    {"queues", "vhost_queues", "Virtqueues that a guest uses."},
    {"connections", "vhost_connections_total", "Virtual machines that came."},
    {"kicks", "vhost_kicks_total", "Times a guest rang."},
    {"calls", "vhost_calls_total", "Times a guest was called."},
    {"messages_refused", "vhost_messages_refused_total", "Messages that made no sense."},
    {"chains_refused", "vhost_chains_refused_total", "Descriptor chains that made no sense."},
    {"rings_broken", "vhost_rings_broken_total", "Virtqueues that were given up."},
};

constexpr single of_command[] = {
    {"count", "requests_total", "Requests that were answered."},
    {"bytes", "request_bytes_total", "Bytes of requests that succeeded."},
    {"errors", "request_errors_total", "Requests that failed."},
};

double value_in(const json& part, const char* key) { return part[key].get<double>(); }

void write_single(metric_writer& out, const json& from, std::span<const single> families) {
  for (const single& f : families) {
    out.family(f.name, f.counts() ? "counter" : "gauge", f.help);
    out.sample(value_in(from, f.key) * f.times);
  }
}

// Calls f(labels, part) for every part of the exports that `families` are of.
template <typename Each>
void write_each(metric_writer& out, std::span<const single> families, Each each) {
  for (const single& f : families) {
    out.family(f.name, f.counts() ? "counter" : "gauge", f.help);
    each([&](std::span<const label> labels, const json& part) {
      out.sample(value_in(part, f.key) * f.times, labels);
    });
  }
}

// Commands of all exports that were ever used.
template <typename F>
void for_each_command(const json& statistics, F f) {
  for (const json& e : statistics["exports"]) {
    for (const auto& [name, command] : e["commands"].items()) {
      if (value_in(command, "count") == 0) continue;
      f(e["name"].get<std::string>(), name, command);
    }
  }
}

void write_latencies(metric_writer& out, const json& statistics) {
  out.family("request_duration_seconds", "histogram", "From a request's receipt to its reply.");
  for_each_command(
      statistics, [&](const std::string& name, const std::string& what, const json& command) {
        label labels[] = {{"export", name}, {"command", what}, {"le", ""}};
        const json& buckets = command["latency_ns"];
        std::uint64_t seen = 0;
        double sum_ns = 0;
        std::size_t at = 0;
        const auto count_up_to = [&](std::uint64_t bound_ns) {
          for (; at < buckets.size() && buckets[at][0].get<std::uint64_t>() < bound_ns; ++at) {
            seen += buckets[at][1].get<std::uint64_t>();
            sum_ns += buckets[at][0].get<double>() * buckets[at][1].get<double>();
          }
        };
        for (unsigned power = bound_first; power <= bound_last; ++power) {
          count_up_to(1ull << power);
          labels[2].second = fmt::format("{}", static_cast<double>(1ull << power) / 1e9);
          out.sample(static_cast<double>(seen), labels, "_bucket");
        }
        count_up_to(UINT64_MAX);
        labels[2].second = "+Inf";
        out.sample(static_cast<double>(seen), labels, "_bucket");
        out.sample(sum_ns / 1e9, std::span(labels).first(2), "_sum");
        out.sample(static_cast<double>(seen), std::span(labels).first(2), "_count");
      });
}

void write_exports(metric_writer& out, const json& statistics) {
  const json& exports = statistics["exports"];
  write_each(out, of_export, [&](auto sample) {
    for (const json& e : exports) {
      const label labels[] = {{"export", e["name"].get<std::string>()}};
      sample(labels, e);
    }
  });
  const auto write_part = [&](std::span<const single> families, const char* part) {
    write_each(out, families, [&](auto sample) {
      for (const json& e : exports) {
        const label labels[] = {{"export", e["name"].get<std::string>()}};
        sample(labels, e[part]);
      }
    });
  };
  write_part(of_limits, "limits");
  write_part(of_queue, "queue");
  write_part(of_vhost, "vhost_user");
  write_each(out, of_class, [&](auto sample) {
    for (const json& e : exports) {
      for (const auto& [name, c] : e["queue"]["classes"].items()) {
        const label labels[] = {{"export", e["name"].get<std::string>()}, {"class", name}};
        sample(labels, c);
      }
    }
  });
  write_each(out, of_command, [&](auto sample) {
    for_each_command(statistics,
                     [&](const std::string& name, const std::string& what, const json& command) {
                       const label labels[] = {{"export", name}, {"command", what}};
                       sample(labels, command);
                     });
  });
  out.family("export_copied_bytes_total", "counter", "Payload that was copied, by where.");
  for (const json& e : exports) {
    for (const auto& [name, bytes] : e["copied"]["where"].items()) {
      const label labels[] = {{"export", e["name"].get<std::string>()}, {"where", name}};
      out.sample(bytes.get<double>(), labels);
    }
  }
  write_latencies(out, statistics);
}

void write_miss_ratios(metric_writer& out, const json& cache) {
  const json& points = cache["miss_ratio_curve"]["points"];
  if (points.empty()) return;
  out.family("cache_estimated_miss_ratio", "gauge",
             "What an LRU cache of so many times the size would miss.");
  for (const double times : {0.25, 0.5, 1.0, 2.0, 4.0, 8.0}) {
    const label labels[] = {{"times", fmt::format("{}", times)}};
    out.sample(miss_ratio_at(points, times * cache["capacity_bytes"].get<double>()), labels);
  }
}

// Pools and slab caches; those of one name and kind are added up.
void write_memory(metric_writer& out, const json& caches) {
  std::map<std::pair<std::string, std::string>, std::pair<double, double>> sums;
  for (const json& c : caches) {
    auto& [bytes, active] = sums[{c["name"].get<std::string>(), c["kind"].get<std::string>()}];
    bytes += c["bytes"].get<double>();
    active += c["active"].get<double>();
  }
  const auto write = [&](const char* name, const char* help, bool is_bytes) {
    out.family(name, "gauge", help);
    for (const auto& [key, sum] : sums) {
      const label labels[] = {{"name", key.first}, {"kind", key.second}};
      out.sample(is_bytes ? sum.first : sum.second, labels);
    }
  };
  write("pool_bytes", "Memory of a slab cache or buffer pool.", true);
  write("pool_objects", "Objects of it that are in use.", false);
}

}  // namespace

std::string metrics_text(const json& statistics) {
  metric_writer out;
  out.family("build_info", "gauge", "The program's version; always 1.");
  const label version[] = {{"version", statistics["version"].get<std::string>()}};
  out.sample(1, version);
  write_single(out, statistics, of_server);
  out.family("clients_failed_total", "counter", "Clients that were dropped, by the reason.");
  for (const auto& [reason, count] : statistics["clients_failed"].items()) {
    const label labels[] = {{"reason", reason}};
    out.sample(count.get<double>(), labels);
  }
  write_single(out, statistics["cache"], of_cache);
  write_miss_ratios(out, statistics["cache"]);
  write_single(out, statistics["pressure"], of_pressure);
  write_exports(out, statistics);
  write_memory(out, statistics["memory"]["caches"]);
  return out.take();
}

}  // namespace forebay
