// How the tools that watch a server show its figures.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>

namespace forebay::tool {

// Latency with three digits: 950 ns, 12.3 us, 4.56 ms; "-" for none.
std::string latency(double us);

// A number of things in at most six characters: 950, 12.3k, 4.56M.
std::string short_count(double n);

// Of one command's statistics at two looks: what a share `fraction` of the requests in between took
// at most, in microseconds; 0 if there were none.
double percentile_between(const nlohmann::ordered_json& before, const nlohmann::ordered_json& after,
                          double fraction);

}  // namespace forebay::tool
