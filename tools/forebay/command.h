// What the subcommands of `forebay` share: how each is added to the command line, and how it says
// that it failed.
#pragma once

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdint>
#include <functional>
#include <string>

namespace forebay::tool {

// The body of a chosen subcommand; its value is the exit status.
using action = std::function<int()>;

// Each adds its subcommand and sets `chosen` when that is what the command line asks for.
void add_serve(CLI::App& app, action& chosen);
void add_stat(CLI::App& app, action& chosen);
void add_top(CLI::App& app, action& chosen);
void add_tune(CLI::App& app, action& chosen);
void add_slabs(CLI::App& app, action& chosen);
void add_replay(CLI::App& app, action& chosen);
void add_echo(CLI::App& app, action& chosen);
void add_bench(CLI::App& app, action& chosen);
void add_capture(CLI::App& app, action& chosen);

// "forebay: " and one line on standard error; the exit status of a failure.
int complain(const std::string& line);

// Of a subcommand that shows something, on a terminal again and again.
struct live_options {
  double interval_s = 2;
  bool once = false;
  bool as_json = false;

  // Whether it is to be shown again, and so each time in the place of the last.
  bool refreshes() const;
};
// Adds --interval, --once and --json, the latter two with these texts.
void add_live_options(CLI::App& to, live_options& o, const std::string& once,
                      const std::string& as_json);
// What is printed next begins in the upper left corner of an empty terminal.
void clear_terminal();

// Bytes as people write them: 512 B, 4 KiB, 1.5 GiB.
std::string human_bytes(std::uint64_t bytes);

}  // namespace forebay::tool
