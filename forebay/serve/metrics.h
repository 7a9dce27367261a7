// Statistics in the text format of Prometheus, version 0.0.4 (its documentation, "Exposition
// formats").
//
// Names are forebay_<part>_<what>_<unit>[_total], units are bytes and seconds. A family's lines
// stand together, under its HELP and TYPE. Latencies are histograms whose bounds are powers of two
// in nanoseconds from 1 us to 34 s: the server counts by these exactly. Their sums take each
// request for the longest of its (finer) bucket, so they are up to 1/16 too high.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

namespace forebay {

inline constexpr const char* metrics_content_type = "text/plain; version=0.0.4; charset=utf-8";

// From statistics_of() (serve/server_statistics.h). Throws std::bad_alloc.
std::string metrics_text(const nlohmann::ordered_json& statistics);

}  // namespace forebay
