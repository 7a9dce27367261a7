#include "bench/memory/program.h"

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <map>
#include <sstream>
#include <string_view>
#include <utility>

namespace forebay::bench {

namespace {

using answer = std::expected<std::string, std::string>;

std::optional<pattern> pattern_of(std::string_view name) {
  constexpr std::array<std::pair<std::string_view, pattern>, 5> names{{{"pair", pattern::pair},
                                                                       {"out32", pattern::out32},
                                                                       {"churn", pattern::churn},
                                                                       {"bulk", pattern::bulk},
                                                                       {"cross", pattern::cross}}};
  for (const auto& [known, p] : names) {
    if (known == name) return p;
  }
  return std::nullopt;
}

class session {
 public:
  session(const program_parts& parts, const std::vector<unsigned>& cpus, const sample_request& base)
      : parts_(parts), base_(base), crew_(cpus, parts.on_thread_start) {}

  const std::string& failure() const { return crew_.failure(); }

  answer execute(const std::string& line) {
    std::istringstream words(line);
    std::string command;
    words >> command;
    if (command == "sample") return take_sample(words);
    if (command == "overhead") return overhead(words);
    if (command == "about") return parts_.about();
    if (command == "subjects") return subjects();
    return std::unexpected("no command '" + command + "'");
  }

 private:
  answer subjects() const {
    std::string names;
    for (const subject_entry& e : parts_.subjects) names += (names.empty() ? "" : " ") + e.name;
    return names;
  }

  std::expected<any_subject*, std::string> subject(const std::string& name, std::size_t bytes) {
    const auto key = std::pair(name, bytes);
    if (const auto found = made_.find(key); found != made_.end()) return found->second.get();
    const auto entry = std::ranges::find(parts_.subjects, name, &subject_entry::name);
    if (entry == parts_.subjects.end()) return std::unexpected("no subject '" + name + "'");
    made_subject made = entry->make(bytes);
    if (!made) return std::unexpected(made.error());
    return made_.emplace(key, std::move(*made)).first->second.get();
  }

  answer take_sample(std::istringstream& words) {
    std::string name;
    std::string pattern_name;
    sample_request request = base_;
    std::size_t bytes = 0;
    words >> name >> pattern_name >> request.threads >> bytes;
    const auto what = pattern_of(pattern_name);
    if (!words || !what) return std::unexpected("usage: sample SUBJECT PATTERN THREADS BYTES");
    request.what = *what;
    const unsigned threads = *what == pattern::cross ? 2 : request.threads;
    if (threads < 1 || threads > crew_.size()) {
      return std::unexpected("needs " + std::to_string(threads) + " CPUs");
    }
    const auto s = subject(name, bytes);
    if (!s) return std::unexpected(s.error());
    const sample got = (*s)->run(crew_, request);
    if (got.ran_dry) return std::unexpected("ran dry");
    std::array<char, 80> text{};
    std::snprintf(text.data(), text.size(), "%.3f %u %u", got.ns, got.windows, got.disturbed);
    return text.data();
  }

  answer overhead(std::istringstream& words) {
    std::string name;
    std::size_t bytes = 0;
    std::size_t count = 0;
    words >> name >> bytes >> count;
    if (!words || count == 0) return std::unexpected("usage: overhead SUBJECT BYTES COUNT");
    const auto s = subject(name, bytes);
    if (!s) return std::unexpected(s.error());
    const auto beside = (*s)->overhead(bytes, count);
    if (!beside) return std::unexpected("not known");
    return std::to_string(*beside);
  }

  const program_parts& parts_;
  const sample_request base_;
  std::map<std::pair<std::string, std::size_t>, std::unique_ptr<any_subject>> made_;
  crew crew_;
};

void print(const answer& a) {
  std::printf("%s %s\n", a ? "ok" : "error", (a ? *a : a.error()).c_str());
  std::fflush(stdout);
}

}  // namespace

std::size_t resident_bytes() {
  std::ifstream statm("/proc/self/statm");
  std::size_t total = 0;
  std::size_t resident = 0;
  statm >> total >> resident;
  return resident * static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
}

int run_program(int argc, char** argv, const program_parts& parts) {
  CLI::App app("Measures " + parts.name + "; bench/README.md says how it is used.");
  std::vector<unsigned> cpus{0, 1};
  sample_request base;
  std::uint64_t window_us = base.window_ns / 1000;
  std::vector<std::string> command;
  app.add_option("--cpus", cpus, "CPUs of the two threads (default 0,1)")
      ->delimiter(',')
      ->expected(1, static_cast<int>(crew_size));
  app.add_option("--windows", base.windows, "windows of a sample")
      ->check(CLI::Range(1u, 1'000'000u));
  app.add_option("--window-us", window_us, "length of a window, microseconds")
      ->check(CLI::Range(1u, 10'000'000u));
  app.add_flag("--touch", base.touch, "write the first 8 bytes of each object");
  app.add_option("command", command, "one command; without it, commands on standard input");
  CLI11_PARSE(app, argc, argv);
  base.window_ns = window_us * 1000;

  session s(parts, cpus, base);
  if (!s.failure().empty()) {
    std::fprintf(stderr, "%s: %s\n", parts.name.c_str(), s.failure().c_str());
    return 1;
  }
  if (!command.empty()) {
    std::string line;
    for (const std::string& word : command) line += word + " ";
    const answer a = s.execute(line);
    print(a);
    return a ? 0 : 1;
  }
  for (std::string line; std::getline(std::cin, line);) print(s.execute(line));
  return 0;
}

}  // namespace forebay::bench
