#include "sim/explorer/weaken.h"

#include <algorithm>
#include <fstream>

#include <fmt/format.h>

namespace forebay::explorer {
namespace {

constexpr std::size_t statement_lines_max = 8;

std::string_view trimmed(std::string_view s) {
  const auto first = s.find_first_not_of(' ');
  return first == std::string_view::npos ? std::string_view{} : s.substr(first);
}

bool is_comment(std::string_view line) { return trimmed(line).starts_with("//"); }

// The line without its comment.
std::string_view code_of(std::string_view line) { return line.substr(0, line.find("//")); }

bool ends_statement(std::string_view line) {
  const std::string_view code = code_of(line);
  const auto last = code.find_last_not_of(' ');
  return last == std::string_view::npos || std::string_view(";{}").contains(code[last]);
}

std::vector<std::string> lines_of(const char* file) {
  std::vector<std::string> lines;
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);) lines.push_back(std::move(line));
  return lines;
}

std::string describe(const site& s) {
  static constexpr const char* parts[] = {"load", "store", "read-modify-write", "failure", "fence"};
  return fmt::format("{}:{}: {} {}", s.file, s.line, to_string(s.order),
                     parts[static_cast<unsigned>(s.part)]);
}

struct explored {
  const bounded_program* scenario;
  site_table sites;
};

class weakener {
 public:
  weakener(std::span<const bounded_program> scenarios,
           std::initializer_list<std::string_view> files)
      : files_(files) {
    for (const bounded_program& s : scenarios) runs_.push_back({&s, {}});
  }

  weakening run() {
    for (explored& e : runs_) {
      const outcome out = explore(*e.scenario->code, e.scenario->bounds, &e.sites);
      report_.executions += out.executions + out.random;
      if (out.failed) {
        report_.problems += "without any weakening: " + out.message + "\n";
        return report_;
      }
    }
    for (const site& s : sites()) try_weaker(s);
    return report_;
  }

 private:
  bool is_ours(const site& s) const {
    return std::any_of(files_.begin(), files_.end(),
                       [&](std::string_view f) { return std::string_view(s.file).ends_with(f); });
  }

  std::vector<site> sites() const {
    std::vector<site> all;
    for (const explored& e : runs_) {
      for (const site& s : e.sites.sites()) {
        if (!is_ours(s) || weaker_orders(s).empty()) continue;
        if (std::find(all.begin(), all.end(), s) == all.end()) all.push_back(s);
      }
    }
    return all;
  }

  void try_weaker(const site& s) {
    ++report_.sites;
    bool all_caught = true;
    const std::vector<std::string> lines = lines_of(s.file);
    const bool remark = has_remark(lines, s.line);
    for (const std::memory_order order : weaker_orders(s)) {
      ++report_.weaker;
      if (is_caught(s, order)) {
        ++report_.caught;
        continue;
      }
      all_caught = false;
      if (remark) {
        ++report_.told;
      } else {
        report_.problems += fmt::format("{}: {} does as well, and nothing says why not\n",
                                        describe(s), to_string(order));
      }
    }
    if (all_caught && remark) {
      report_.problems +=
          fmt::format("{}: every weaker order was caught; the remark is not true\n", describe(s));
    }
  }

  bool is_caught(const site& s, std::memory_order order) {
    for (explored& e : runs_) {
      const auto& known = e.sites.sites();
      if (std::find(known.begin(), known.end(), s) == known.end()) continue;
      e.sites.weaken(s, order);
      options bounds = e.scenario->bounds;
      bounds.explain = false;
      const outcome out = explore(*e.scenario->code, bounds, &e.sites);
      e.sites.restore();
      report_.executions += out.executions + out.random;
      if (out.failed) return true;
    }
    return false;
  }

  std::vector<std::string_view> files_;
  std::vector<explored> runs_;
  weakening report_;
};

}  // namespace

bool has_remark(std::span<const std::string> lines, std::size_t number) {
  if (number == 0 || number > lines.size()) return false;
  const auto says = [&](std::size_t i) { return lines[i].contains(remark_words); };
  // Down to the statement's end.
  const std::size_t at = number - 1;
  std::size_t last = at;
  while (last + 1 < lines.size() && last - at < statement_lines_max && !ends_statement(lines[last]))
    ++last;
  for (std::size_t i = at; i <= last; ++i) {
    if (says(i)) return true;
  }
  // Up over the statement's beginning and the comment above it.
  std::size_t i = at;
  while (i != 0 && !is_comment(lines[i - 1]) && !ends_statement(lines[i - 1])) {
    if (says(--i)) return true;
  }
  while (i != 0 && is_comment(lines[i - 1])) {
    if (says(--i)) return true;
  }
  return false;
}

weakening weaken(std::span<const bounded_program> scenarios,
                 std::initializer_list<std::string_view> files) {
  return weakener(scenarios, files).run();
}

}  // namespace forebay::explorer
