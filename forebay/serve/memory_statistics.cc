#include "forebay/serve/memory_statistics.h"

#include <nlohmann/json.hpp>

#include "forebay/memory/registry.h"

namespace forebay {

using json = nlohmann::ordered_json;

json memory_json() {
  json caches = json::array();
  for (const memory_statistics& s : memory_snapshot(memory_order_by::bytes)) {
    caches.push_back({
        {"name", s.name},
        {"kind", to_string(s.kind)},
        {"object_bytes", s.object_bytes},
        {"stride_bytes", s.stride_bytes},
        {"objects_per_slab", s.objects_per_slab},
        {"slab_bytes", s.slab_bytes},
        {"active", s.active},
        {"total", s.total},
        {"cached", s.cached},
        {"slabs", s.slabs},
        {"partial_slabs", s.partial_slabs},
        {"bytes", s.bytes},
        {"allocations", s.allocations},
        {"frees", s.frees},
        {"cpu_hits", s.cpu_hits},
        {"failures", s.failures},
        {"high_watermark", s.high_watermark},
        {"per_cpu", s.per_cpu},
        {"debug", s.debug},
    });
  }
  return {{"caches", std::move(caches)}};
}

}  // namespace forebay
