// The layout of a warm store's file, for the two sources that know it, and their tests.
#pragma once

#include <array>
#include <atomic>
#include <cstring>
#include <string>
#include <type_traits>

#include "forebay/base/cache_line.h"
#include "forebay/cache/warm_store.h"

namespace forebay {

enum class warm_state : std::uint32_t {
  in_use = 1,  // a run has it, or ended without saying so
  clean = 2,   // the last run ended in order
};

struct warm_store::header {
  static constexpr std::uint64_t magic_value = 0x6d7261775f794246;  // "FBy_warm"
  static constexpr std::uint32_t version_value = 1;

  // Written once, the magic last: a file without it holds nothing.
  std::atomic<std::uint64_t> magic;
  std::uint32_t version;
  std::uint32_t page_bytes;
  std::uint32_t frames;
  std::uint32_t images;
  std::uint64_t records_offset;
  std::uint64_t data_offset;
  std::uint64_t check;  // of the fields above

  std::atomic<warm_state> state;

  // FNV-1a.
  std::uint64_t sum() const noexcept {
    std::uint64_t h = 0xcbf29ce484222325;
    for (const std::uint64_t v :
         {std::uint64_t{version}, std::uint64_t{page_bytes}, std::uint64_t{frames},
          std::uint64_t{images}, records_offset, data_offset}) {
      for (unsigned i = 0; i < 64; i += 8) h = (h ^ (v >> i & 0xff)) * 0x100000001b3;
    }
    return h;
  }
};

struct warm_store::image_entry {
  struct range {
    std::uint64_t from;  // bytes
    std::uint64_t end;   // 0: none
  };

  std::uint32_t in_use;
  std::uint32_t block_bytes;
  file_identity identity;
  std::array<range, discards_max> discards;
  std::array<char, path_max + 1> path;

  std::string path_text() const { return {path.data(), ::strnlen(path.data(), path_max)}; }
};

static_assert(std::is_trivially_copyable_v<file_identity>);

}  // namespace forebay
