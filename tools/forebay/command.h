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
void add_slabs(CLI::App& app, action& chosen);
void add_replay(CLI::App& app, action& chosen);
void add_echo(CLI::App& app, action& chosen);
void add_bench(CLI::App& app, action& chosen);
void add_capture(CLI::App& app, action& chosen);

// "forebay: " and one line on standard error; the exit status of a failure.
int complain(const std::string& line);

// Bytes as people write them: 512 B, 4 KiB, 1.5 GiB.
std::string human_bytes(std::uint64_t bytes);

}  // namespace forebay::tool
