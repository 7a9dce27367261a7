// The client side of the statistics of a running server, which `forebay stat` and `forebay slabs`
// show, and of its tuning.
#pragma once

#include <expected>
#include <nlohmann/json.hpp>
#include <string>

namespace forebay::tool {

// Connects to `where`, a unix socket or HOST:PORT, asks once and leaves. The error is one line for
// the user: what is wrong and what to do.
std::expected<nlohmann::ordered_json, std::string> ask_statistics(const std::string& where);

// Asks the server at `where` for changes (nbd::option::tune). Empty when they are made, else why
// none is, in one line for the user.
std::string tune_server(const std::string& where, const std::string& changes);

}  // namespace forebay::tool
