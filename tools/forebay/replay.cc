// forebay replay: what a cache of a given size would have missed of a recorded load, by policy.

#include <algorithm>
#include <bit>
#include <charconv>
#include <chrono>
#include <cmath>
#include <fstream>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>

#include "forebay/cache/eviction.h"
#include "forebay/cache/miss_ratio_curve.h"
#include "tools/forebay/command.h"
#include "tools/forebay/line_plot.h"
#include "tools/forebay/replay_trace.h"

namespace forebay::tool {
namespace {

using json = nlohmann::ordered_json;

struct replay_options {
  std::vector<std::string> traces;
  std::vector<std::string> policies;
  std::vector<std::string> sizes{"0.1%", "1%", "10%"};
  std::string format;
  std::uint32_t block_bytes = 4096;
  bool as_json = false;
  bool sampled = false;
  std::string svg;
};

// A cache's size: a share of the footprint, or blocks.
struct cache_size {
  std::string text;
  double share = 0;  // of the footprint, if above 0
  std::uint64_t blocks = 0;

  std::uint32_t of(const replay_trace& t) const {
    const double wanted =
        share > 0 ? share * static_cast<double>(t.blocks) : static_cast<double>(blocks);
    return static_cast<std::uint32_t>(std::clamp(wanted, 1.0, static_cast<double>(t.blocks)));
  }
};

std::expected<cache_size, std::string> parse_size(const std::string& text,
                                                  std::uint32_t block_bytes) {
  cache_size size{.text = text};
  double number = 0;
  const char* const begin = text.data();
  const auto [end, error] = std::from_chars(begin, begin + text.size(), number);
  const std::string_view unit(end, begin + text.size());
  const auto bad = [&](const char* why) {
    return std::unexpected(fmt::format("--size {}: {}", text, why));
  };
  if (error != std::errc() || !std::isfinite(number)) {
    return bad("not a size; give 1%, 64M or a number of blocks");
  }
  if (number <= 0) return bad("a cache has to have a size above 0");
  if (unit == "%") {
    if (number > 100) return bad("more than the footprint");
    size.share = number / 100;
    return size;
  }
  constexpr std::string_view units = "KMGT";
  const std::size_t power = unit.empty() ? 0 : units.find(unit);
  if (unit.size() > 1 || power == std::string_view::npos) {
    return bad("no such unit; there are K, M, G, T and %");
  }
  const double blocks =
      unit.empty() ? number : std::ldexp(number, 10 * (static_cast<int>(power) + 1)) / block_bytes;
  if (blocks < 1) return bad("less than a block");
  if (blocks >= UINT32_MAX) return bad("more blocks than can be replayed");
  size.blocks = static_cast<std::uint64_t>(blocks);
  return size;
}

std::string policy_names() {
  std::string out;
  for (const replay_policy& p : replay_policies()) {
    out += (out.empty() ? "" : ", ") + std::string(p.name);
  }
  return out;
}

const replay_policy* policy_named(std::string_view name) {
  const auto all = replay_policies();
  const auto found = std::ranges::find(all, name, &replay_policy::name);
  return found == all.end() ? nullptr : &*found;
}

// The line about how far it is, once it has taken a second.
class progress_line {
 public:
  void operator()(const std::string& line) {
    const auto now = std::chrono::steady_clock::now();
    if (now - start_ < std::chrono::seconds(1) || now - last_ < std::chrono::milliseconds(100)) {
      return;
    }
    last_ = now;
    fmt::print(stderr, "\rforebay: {:<70}", line);
    std::fflush(stderr);
    shown_ = true;
  }
  ~progress_line() {
    if (shown_) fmt::print(stderr, "\r{:80}\r", "");
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  std::chrono::steady_clock::time_point last_;
  bool shown_ = false;
};

// What was asked for, understood.
struct replay_plan {
  std::vector<const replay_policy*> policies;
  std::vector<cache_size> sizes;
  trace_options reading;
};

// Miss ratios of one trace: ratio(policy, blocks).
class trace_results {
 public:
  trace_results(const replay_trace& t, progress_line& progress) : trace_(t), progress_(progress) {}

  std::uint64_t misses(const replay_policy& p, std::uint32_t blocks) {
    const auto [at, fresh] = known_.try_emplace({p.name, blocks}, 0);
    if (fresh) {
      progress_(fmt::format("{}: {} with {} blocks", trace_.name, p.name, blocks));
      at->second = replay_misses(trace_, p.name, blocks);
    }
    return at->second;
  }
  double ratio(const replay_policy& p, std::uint32_t blocks) {
    return static_cast<double>(misses(p, blocks)) / static_cast<double>(trace_.requests.size());
  }

 private:
  const replay_trace& trace_;
  progress_line& progress_;
  std::map<std::pair<std::string_view, std::uint32_t>, std::uint64_t> known_;
};

json trace_json(const replay_trace& t, const replay_plan& plan, trace_results& results) {
  json policies = json::array();
  for (const replay_policy* p : plan.policies) {
    json sizes = json::array();
    for (const cache_size& s : plan.sizes) {
      const std::uint32_t blocks = s.of(t);
      sizes.push_back({{"size", s.text},
                       {"blocks", blocks},
                       {"misses", results.misses(*p, blocks)},
                       {"miss_ratio", results.ratio(*p, blocks)}});
    }
    policies.push_back({{"policy", std::string(p->name)}, {"sizes", sizes}});
  }
  return {{"trace", t.name},
          {"requests", t.requests.size()},
          {"footprint_blocks", t.blocks},
          {"policies", policies}};
}

void print_table(const json& t) {
  fmt::print("{}: {} requests for {} blocks\n\n{:<12}", t["trace"].get<std::string>(),
             t["requests"].get<std::uint64_t>(), t["footprint_blocks"].get<std::uint64_t>(),
             "miss ratio");
  const auto column = [](const json& s) {
    return fmt::format("{} ({})", s["size"].get<std::string>(), s["blocks"].get<std::uint64_t>());
  };
  for (const json& s : t["policies"][0]["sizes"]) fmt::print("{:>16}", column(s));
  fmt::print("\n");
  for (const json& p : t["policies"]) {
    fmt::print("{:<12}", p["policy"].get<std::string>());
    for (const json& s : p["sizes"]) fmt::print("{:>16.4f}", s["miss_ratio"].get<double>());
    fmt::print("\n");
  }
  fmt::print("\n");
}

// The curve that a server estimates while it runs, beside the exact one.
json sampled_json(const replay_trace& t, const replay_plan& plan) {
  constexpr int steps = 100;
  const std::vector<double> exact = exact_miss_ratios(t);
  const auto curve = miss_ratio_curve::create({});
  if (curve == nullptr) throw std::bad_alloc();
  for (const std::uint32_t block : t.requests) curve->access(miss_ratio_curve::hash(block));
  const std::uint64_t all = t.requests.size();
  json sizes = json::array();
  for (const cache_size& s : plan.sizes) {
    const std::uint32_t blocks = s.of(t);
    sizes.push_back({{"size", s.text},
                     {"blocks", blocks},
                     {"sampled", curve->miss_ratio(blocks, all)},
                     {"exact", exact[blocks]}});
  }
  double sum = 0;
  double most = 0;
  for (int i = 1; i <= steps; ++i) {
    const std::uint32_t blocks = cache_size{.text = {}, .share = i / double{steps}}.of(t);
    const double error = std::abs(curve->miss_ratio(blocks, all) - exact[blocks]);
    sum += error;
    most = std::max(most, error);
  }
  return {{"trace", t.name},
          {"requests", all},
          {"footprint_blocks", t.blocks},
          {"rate", curve->rate()},
          {"sampled_blocks", curve->pages()},
          {"mean_error", sum / steps},
          {"max_error", most},
          {"sizes", sizes}};
}

void print_sampled(const json& t) {
  fmt::print("{}: {} requests for {} blocks; {} of them in the sample at its end, {:.2f} %\n\n",
             t["trace"].get<std::string>(), t["requests"].get<std::uint64_t>(),
             t["footprint_blocks"].get<std::uint64_t>(), t["sampled_blocks"].get<std::uint64_t>(),
             t["rate"].get<double>() * 100);
  fmt::print("{:<12}{:>16}{:>16}\n", "miss ratio", "sampled", "exact LRU");
  for (const json& s : t["sizes"]) {
    fmt::print("{:<12}{:>16.4f}{:>16.4f}\n",
               fmt::format("{} ({})", s["size"].get<std::string>(), s["blocks"].get<unsigned>()),
               s["sampled"].get<double>(), s["exact"].get<double>());
  }
  fmt::print("error over 1%, 2%, ... 100%: {:.4f} in the mean, {:.4f} at most\n\n",
             t["mean_error"].get<double>(), t["max_error"].get<double>());
}

double median(std::vector<double> of) {
  std::ranges::sort(of);
  const std::size_t half = of.size() / 2;
  return of.size() % 2 == 1 ? of[half] : (of[half - 1] + of[half]) / 2;
}

// How far each policy is, over all traces, from the best of those that are compared with.
void print_summary(const json& traces) {
  fmt::print("{:<12}median over {} traces of the miss ratio over the best of", "", traces.size());
  for (const replay_policy& p : replay_policies()) {
    if (p.compared) fmt::print(" {}", p.name);
  }
  fmt::print("\n");
  const json& first = traces[0]["policies"];
  for (std::size_t policy = 0; policy < first.size(); ++policy) {
    fmt::print("{:<12}", first[policy]["policy"].get<std::string>());
    for (std::size_t size = 0; size < first[policy]["sizes"].size(); ++size) {
      std::vector<double> relative;
      for (const json& t : traces) {
        double best = HUGE_VAL;
        for (const json& p : t["policies"]) {
          if (!policy_named(p["policy"].get<std::string>())->compared) continue;
          best = std::min(best, p["sizes"][size]["miss_ratio"].get<double>());
        }
        relative.push_back(t["policies"][policy]["sizes"][size]["miss_ratio"].get<double>() / best);
      }
      fmt::print("{:>16.4f}", median(std::move(relative)));
    }
    fmt::print("\n");
  }
}

// From a thousandth of the footprint to all of it, in even steps of the logarithm.
line_plot curves(const replay_trace& t, const replay_plan& plan, trace_results& results) {
  constexpr int steps = 18;
  line_plot plot{.title = t.name,
                 .x = {plot_axis::scale::decades,
                       "blocks in the cache, of " + std::to_string(t.blocks) + " in " + t.name},
                 .y = {plot_axis::scale::tenths, "miss ratio"},
                 .lines = {}};
  for (const replay_policy* p : plan.policies) {
    plot_line line{.name = std::string(p->name), .peer = !p->ours, .points = {}};
    std::uint32_t last = 0;
    for (int i = 0; i <= steps; ++i) {
      const cache_size size{.text = {}, .share = std::pow(10, -3 + 3.0 * i / steps)};
      const std::uint32_t blocks = size.of(t);
      if (std::exchange(last, blocks) == blocks) continue;
      const double ratio = results.ratio(*p, blocks);
      line.points.push_back({static_cast<double>(blocks), ratio,
                             fmt::format("{}, {} blocks: {:.4f}", p->name, blocks, ratio)});
    }
    plot.lines.push_back(std::move(line));
  }
  return plot;
}

std::optional<std::string> make_plan(const replay_options& o, replay_plan& plan) {
  for (const std::string& name : o.policies) {
    const replay_policy* const p = policy_named(name);
    if (p == nullptr) {
      return fmt::format("--policy {}: no such policy; there are {}", name, policy_names());
    }
    plan.policies.push_back(p);
  }
  if (plan.policies.empty()) {
    for (const replay_policy& p : replay_policies()) plan.policies.push_back(&p);
  }
  if (!std::has_single_bit(o.block_bytes) || o.block_bytes < 512 || o.block_bytes > 2u << 20) {
    return fmt::format("--block-size {}: must be a power of two from 512 to 2M", o.block_bytes);
  }
  for (const std::string& text : o.sizes) {
    auto size = parse_size(text, o.block_bytes);
    if (!size) return size.error();
    plan.sizes.push_back(std::move(*size));
  }
  plan.reading.block_bytes = o.block_bytes;
  plan.reading.format = trace_format_named(o.format);
  if (!o.format.empty() && !plan.reading.format) {
    return fmt::format("--format {}: no such format; there are oracle, msr and text", o.format);
  }
  return std::nullopt;
}

int replay(const replay_options& o) {
  replay_plan plan;
  if (auto problem = make_plan(o, plan)) return complain(*problem);
  std::ofstream picture;
  if (!o.svg.empty()) {
    picture.open(o.svg);
    if (!picture) return complain(fmt::format("--svg {}: cannot be written", o.svg));
  }
  json traces = json::array();
  std::vector<line_plot> plots;
  for (const std::string& path : o.traces) {
    progress_line progress;
    const auto trace = read_trace(path, plan.reading, [&](std::uint64_t n) {
      progress(fmt::format("{}: {} million requests read", path, n >> 20));
    });
    if (!trace) return complain(trace.error());
    if (o.sampled) {
      traces.push_back(sampled_json(*trace, plan));
      continue;
    }
    trace_results results(*trace, progress);
    traces.push_back(trace_json(*trace, plan, results));
    if (!o.svg.empty()) plots.push_back(curves(*trace, plan, results));
  }
  if (o.as_json) {
    fmt::print("{}\n", json{{"traces", traces}}.dump(2));
  } else if (o.sampled) {
    for (const json& t : traces) print_sampled(t);
  } else {
    for (const json& t : traces) print_table(t);
    const bool comparable = std::ranges::any_of(plan.policies, &replay_policy::compared);
    if (traces.size() > 1 && comparable) print_summary(traces);
  }
  if (!o.svg.empty() && !(picture << plots_svg(plots) << std::flush)) {
    return complain(fmt::format("--svg {}: cannot be written", o.svg));
  }
  return 0;
}

}  // namespace

void add_replay(CLI::App& app, action& chosen) {
  auto o = std::make_shared<replay_options>();
  CLI::App* c = app.add_subcommand(
      "replay", "Show how often a cache would have missed, by its size and its eviction policy");
  c->add_option("TRACE", o->traces,
                "Recorded requests: libCacheSim oracleGeneral, MSR Cambridge CSV or text; also "
                "compressed (.xz, .zst)")
      ->required();
  CLI::Option* const policy = c->add_option("--policy", o->policies, "Policies to compare (all)")
                                  ->delimiter(',')
                                  ->type_name("NAME[,NAME...]");
  c->add_option("--size", o->sizes,
                "Sizes of the cache: 1% of the blocks in the trace, 64M, or a number of blocks "
                "(0.1%,1%,10%)")
      ->delimiter(',')
      ->type_name("SIZE[,SIZE...]");
  c->add_option("--format", o->format, "oracle, msr or text (as the name says)")
      ->type_name("FORMAT");
  c->add_option("--block-size", o->block_bytes, "Of the cache's blocks (4096)")
      ->transform(CLI::AsSizeValue(false))
      ->type_name("BYTES");
  c->add_flag("--json", o->as_json, "All figures, as JSON");
  CLI::Option* const svg =
      c->add_option("--svg", o->svg, "Draw the miss ratio against the size")->type_name("FILE");
  c->add_flag("--mrc", o->sampled,
              "Instead of policies: the miss ratios that a server estimates from a sample while it "
              "runs, beside the exact ones")
      ->excludes(svg)
      ->excludes(policy);
  c->footer("Policies: " + policy_names() +
            "\nAn example: forebay replay disk.csv --policy adaptive,lru --size 1%,512M");
  c->callback([o, &chosen] { chosen = [o] { return replay(*o); }; });
}

}  // namespace forebay::tool
