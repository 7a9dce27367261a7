// The part of the statistics that tells where the process's memory is, which `forebay slabs` shows.
#pragma once

#include <nlohmann/json_fwd.hpp>

namespace forebay {

// The memory registry as JSON: an object whose member `caches` lists everything enrolled.
nlohmann::ordered_json memory_json();

}  // namespace forebay
