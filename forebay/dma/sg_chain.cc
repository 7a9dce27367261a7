#include "forebay/dma/sg_chain.h"

#include <string>

namespace forebay {
namespace {

slab_cache::options chunk_options(std::string name) {
  slab_cache::options o;
  o.name = std::move(name);
  o.object_bytes = sg_chunk_bytes;
  o.number_if_name_is_taken = true;
  return o;
}

}  // namespace

sg_slab::sg_slab(arena& memory, std::string name)
    : slabs_(memory, chunk_options(std::move(name))) {}

}  // namespace forebay
