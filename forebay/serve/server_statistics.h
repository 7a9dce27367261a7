// The statistics of a server as they are shown: one JSON object, of which `forebay stat`, `top` and
// `slabs`, /stats and /metrics each take what they want. Its members are gathered nowhere else.
//
// What is counted is counted since the server's start, so a rate is the difference of two looks.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

namespace forebay {

class server;

// All of it. Any thread, while the server runs. Throws std::bad_alloc.
nlohmann::ordered_json statistics_of(server& of);

// JSON as text; bytes that are no UTF-8 are replaced.
std::string text_of_json(const nlohmann::ordered_json& j);

// The miss ratio that a curve, `cache.miss_ratio_curve.points`, has for a cache of so many bytes; 1
// of a curve without points.
double miss_ratio_at(const nlohmann::ordered_json& points, double cache_bytes);

}  // namespace forebay
