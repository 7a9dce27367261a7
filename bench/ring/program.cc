#include "bench/ring/program.h"

#include <CLI/CLI.hpp>
#include <cstdio>
#include <expected>
#include <iostream>
#include <sstream>

namespace forebay::bench {

namespace {

using answer = std::expected<std::string, std::string>;

answer execute(const std::string& line, const std::string& about,
               const std::vector<ring_subject>& subjects, tool::pipe_request request) {
  std::istringstream words(line);
  std::string command;
  std::string name;
  std::string pattern;
  words >> command;
  if (command == "about") return about;
  if (command != "sample") return std::unexpected("no command '" + command + "'");
  words >> name >> pattern >> request.batch;
  if (!words || (pattern != "pipe" && pattern != "pair") || request.batch == 0 ||
      request.batch > tool::batch_max) {
    return std::unexpected("usage: sample SUBJECT pipe|pair BATCH");
  }
  request.pair = pattern == "pair";
  const auto s = std::ranges::find(subjects, name, &ring_subject::name);
  if (s == subjects.end()) return std::unexpected("no subject '" + name + "'");
  const tool::pipe_sample got = s->measure(request);
  if (!got.failure.empty()) return std::unexpected(got.failure);
  std::array<char, 80> text{};
  std::snprintf(text.data(), text.size(), "%.4f %u %u", got.ns, got.windows, got.disturbed);
  return text.data();
}

}  // namespace

int run_program(int argc, char** argv, const std::string& about,
                const std::vector<ring_subject>& subjects) {
  CLI::App app("Measures rings; bench/README.md says how it is used.");
  std::vector<unsigned> cpus{0, 1};
  tool::pipe_request request;
  app.add_option("--cpus", cpus, "CPUs of the two threads (default 0,1)")
      ->delimiter(',')
      ->expected(2);
  app.add_option("--windows", request.windows, "windows of a sample")
      ->check(CLI::Range(1u, 1'000'000u));
  CLI11_PARSE(app, argc, argv);
  std::ranges::copy(cpus, request.cpus.begin());
  for (std::string line; std::getline(std::cin, line);) {
    const answer a = execute(line, about, subjects, request);
    std::printf("%s %s\n", a ? "ok" : "error", (a ? *a : a.error()).c_str());
    std::fflush(stdout);
  }
  return 0;
}

}  // namespace forebay::bench
