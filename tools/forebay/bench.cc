// forebay bench: what Forebay's parts cost on this machine.
//
// burst: the cost of an item by the batch, of the rings between two threads and of a buffer pool,
// as a table, as JSON and as a picture, into which the figures of others can be taken.

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>

#include "forebay/memory/buffer_pool.h"
#include "tools/forebay/burst_plot.h"
#include "tools/forebay/command.h"
#include "tools/forebay/piped_rings.h"

namespace forebay::tool {
namespace {

using json = nlohmann::ordered_json;

struct burst_options {
  std::string out;
  std::string with;
  std::vector<unsigned> cpus;
  unsigned rounds = 5;
  bool as_json = false;
};

constexpr std::array<unsigned, 9> batches = {1, 2, 4, 8, 16, 32, 64, 128, 256};
static_assert(batches.back() == batch_max);

// Something that can be measured at a batch: nanoseconds an item, or one line that says why not.
class burst_subject {
 public:
  explicit burst_subject(std::string name) : name_(std::move(name)) {}
  virtual ~burst_subject() = default;
  burst_subject(const burst_subject&) = delete;
  burst_subject& operator=(const burst_subject&) = delete;

  const std::string& name() const { return name_; }
  virtual std::expected<double, std::string> sample(unsigned batch) = 0;

 private:
  const std::string name_;
};

template <typename Ring>
class ring_subject final : public burst_subject {
 public:
  ring_subject(std::string name, std::unique_ptr<Ring> ring, std::array<unsigned, 2> cpus)
      : burst_subject(std::move(name)), ring_(std::move(ring)), cpus_(cpus) {}

  std::expected<double, std::string> sample(unsigned batch) override {
    pipe_request request;
    request.batch = batch;
    request.windows = 5;
    request.cpus = cpus_;
    const pipe_sample got = measure_pipe(ring_, request);
    if (!got.failure.empty()) return std::unexpected(got.failure);
    return got.ns;
  }

 private:
  piped_ring<Ring> ring_;
  const std::array<unsigned, 2> cpus_;
};

// Allocates a batch of buffers and frees it; on the thread that asks.
class pool_subject final : public burst_subject {
 public:
  static result<std::unique_ptr<pool_subject>> create() {
    auto memory = arena::create({.bytes = std::size_t{16} << 20, .huge_pages = false});
    if (!memory) return fail(memory.error());
    auto pool = buffer_pool::create(
        **memory, {.name = "burst", .buffer_bytes = 2048, .count = 1024, .registry = nullptr});
    if (!pool) return fail(pool.error());
    return std::unique_ptr<pool_subject>(new pool_subject(std::move(*memory), std::move(*pool)));
  }

  std::expected<double, std::string> sample(unsigned batch) override {
    std::array<buffer*, batch_max> held{};
    const std::span<buffer*> buffers(held.data(), batch);
    std::array<double, 5> windows{};
    for (double& ns : windows) {
      const std::uint64_t start = monotonic_clock::now_ns();
      std::uint64_t now = start;
      std::uint64_t count = 0;
      for (; now < start + window_ns; now = monotonic_clock::now_ns()) {
        for (std::size_t n = 0; n < items_between_looks; n += batch) {
          if (!pool_->try_allocate_bulk_raw(buffers)) return std::unexpected("the pool ran dry");
          if (!pool_->free_bulk_raw(buffers)) return std::unexpected("the pool refused a buffer");
        }
        count += items_between_looks;
      }
      ns = static_cast<double>(now - start) / static_cast<double>(count);
    }
    std::ranges::sort(windows);
    return windows[windows.size() / 2];
  }

 private:
  static constexpr std::uint64_t window_ns = 1'000'000;
  static constexpr std::size_t items_between_looks = 4096;

  pool_subject(std::unique_ptr<arena> memory, std::unique_ptr<buffer_pool> pool)
      : burst_subject("buffer pool"), memory_(std::move(memory)), pool_(std::move(pool)) {}

  const std::unique_ptr<arena> memory_;
  const std::unique_ptr<buffer_pool> pool_;
};

using subjects = std::vector<std::unique_ptr<burst_subject>>;

result<subjects> make_subjects(const std::vector<unsigned>& cpus) {
  subjects made;
  if (cpus.size() >= 2) {
    auto spsc = spsc_ring<void*>::create(pipe_capacity);
    if (!spsc) return fail(spsc.error());
    auto mpmc = mpmc_ring<void*>::create(pipe_capacity);
    if (!mpmc) return fail(mpmc.error());
    const std::array<unsigned, 2> two{cpus[0], cpus[1]};
    made.push_back(
        std::make_unique<ring_subject<spsc_ring<void*>>>("forebay spsc", std::move(*spsc), two));
    made.push_back(
        std::make_unique<ring_subject<mpmc_ring<void*>>>("forebay mpmc", std::move(*mpmc), two));
  }
  auto pool = pool_subject::create();
  if (!pool) return fail(pool.error());
  made.push_back(std::move(*pool));
  return made;
}

// All of them in turn, round after round; the medians of the rounds.
std::expected<std::vector<burst_line>, std::string> measure(const subjects& of, unsigned rounds) {
  std::vector<burst_line> lines;
  for (const auto& s : of) lines.push_back({.name = s->name(), .peer = false, .points = {}});
  for (const unsigned batch : batches) {
    std::vector<std::vector<double>> samples(of.size());
    for (unsigned round = 0; round < rounds; ++round) {
      for (std::size_t i = 0; i < of.size(); ++i) {
        const auto ns = of[i]->sample(batch);
        if (!ns) return std::unexpected(fmt::format("{}: {}", of[i]->name(), ns.error()));
        samples[i].push_back(*ns);
      }
    }
    for (std::size_t i = 0; i < of.size(); ++i) {
      std::ranges::sort(samples[i]);
      lines[i].points.push_back({.batch = batch, .ns = samples[i][rounds / 2]});
    }
  }
  return lines;
}

json to_json(const std::vector<burst_line>& lines) {
  json all = json::array();
  for (const burst_line& line : lines) {
    json points = json::array();
    for (const burst_point& p : line.points) points.push_back({{"batch", p.batch}, {"ns", p.ns}});
    all.push_back({{"name", line.name}, {"peer", line.peer}, {"points", std::move(points)}});
  }
  return {{"unit", "ns an item"}, {"lines", std::move(all)}};
}

// What --json or bench/run --json has written.
std::expected<std::vector<burst_line>, std::string> read_lines(const std::string& path) {
  std::ifstream file(path);
  if (!file) return std::unexpected(fmt::format("{}: cannot be read", path));
  std::vector<burst_line> lines;
  try {
    json all = json::parse(file);
    if (all.contains("rings")) all = json(all.at("rings").at("burst"));
    for (const json& line : all.at("lines")) {
      lines.push_back({.name = line.at("name").get<std::string>(),
                       .peer = line.at("peer").get<bool>(),
                       .points = {}});
      for (const json& p : line.at("points")) {
        const burst_point got{.batch = p.at("batch").get<unsigned>(),
                              .ns = p.at("ns").get<double>()};
        if (got.batch == 0 || !(got.ns > 0)) {
          return std::unexpected(fmt::format("{}: a point of 0", path));
        }
        lines.back().points.push_back(got);
      }
    }
  } catch (const json::exception&) {
    return std::unexpected(
        fmt::format("{}: not what 'forebay bench burst --json' or bench/run --json writes", path));
  }
  return lines;
}

void print_table(const std::vector<burst_line>& lines) {
  fmt::print("{:>8}", "batch");
  for (const burst_line& line : lines) {
    fmt::print("{:>{}}", line.name, std::max<std::size_t>(10, line.name.size() + 2));
  }
  fmt::print("\n");
  for (const unsigned batch : batches) {
    fmt::print("{:>8}", batch);
    for (const burst_line& line : lines) {
      const auto p = std::ranges::find(line.points, batch, &burst_point::batch);
      const std::size_t width = std::max<std::size_t>(10, line.name.size() + 2);
      if (p == line.points.end())
        fmt::print("{:>{}}", "-", width);
      else
        fmt::print("{:>{}.2f}", p->ns, width);
    }
    fmt::print("\n");
  }
  fmt::print("nanoseconds an item, medians\n");
}

int burst(burst_options o) {
  const std::vector<unsigned> allowed = allowed_cpus();
  if (o.cpus.empty())
    o.cpus.assign(allowed.begin(),
                  allowed.begin() + std::min<std::ptrdiff_t>(2, std::ssize(allowed)));
  for (const unsigned cpu : o.cpus) {
    if (std::ranges::find(allowed, cpu) == allowed.end()) {
      return complain(fmt::format("--cpus: this process may not run on CPU {}", cpu));
    }
  }
  // What can go wrong at once does so before anything is measured.
  std::expected<std::vector<burst_line>, std::string> others;
  if (!o.with.empty()) others = read_lines(o.with);
  if (!others) return complain(others.error());
  std::ofstream picture;
  if (!o.out.empty()) {
    picture.open(o.out);
    if (!picture) return complain(fmt::format("{}: cannot be written", o.out));
  }
  const auto subjects_here = make_subjects(o.cpus);
  if (!subjects_here) return complain(subjects_here.error().message());
  auto lines = measure(*subjects_here, o.rounds);
  if (!lines) return complain(lines.error());
  std::ranges::copy_if(*others, std::back_inserter(*lines), [&](const burst_line& other) {
    return std::ranges::none_of(*subjects_here,
                                [&](const auto& s) { return s->name() == other.name; });
  });
  if (o.as_json) {
    fmt::print("{}\n", to_json(*lines).dump(2));
  } else {
    if (o.cpus.size() < 2) fmt::print("one CPU: the rings, which need two, are left out\n");
    print_table(*lines);
  }
  if (o.out.empty()) return 0;
  picture << burst_svg(*lines);
  picture.close();
  if (!picture) return complain(fmt::format("{}: cannot be written", o.out));
  return 0;
}

}  // namespace

void add_bench(CLI::App& app, action& chosen) {
  CLI::App* bench =
      app.add_subcommand("bench", "Measure what Forebay's parts cost on this machine");
  bench->require_subcommand(1);
  auto o = std::make_shared<burst_options>();
  CLI::App* c = bench->add_subcommand("burst", "The cost of an item by the batch");
  c->add_option("--out", o->out, "Write a picture (SVG) there")->type_name("FILE");
  c->add_option("--with", o->with,
                "Take the lines of this JSON file into it: of bench/run, or --json")
      ->type_name("FILE");
  c->add_option("--cpus", o->cpus,
                "The two CPUs for what needs two threads; the first two unless told")
      ->delimiter(',')
      ->expected(2);
  c->add_option("--rounds", o->rounds, "Samples of each, of which the median counts")
      ->check(CLI::Range(1u, 1000u))
      ->capture_default_str();
  c->add_flag("--json", o->as_json, "JSON instead of the table");
  c->callback([o, &chosen] { chosen = [o] { return burst(*o); }; });
}

}  // namespace forebay::tool
