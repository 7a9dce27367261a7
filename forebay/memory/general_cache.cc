#include "forebay/memory/general_cache.h"

#include <fmt/format.h>

#include <cstdio>
#include <cstdlib>
#include <new>

#include "forebay/os/stack_trace.h"

namespace forebay {
namespace {

constexpr std::size_t cached_share = 8;  // of the arena
constexpr std::align_val_t storage_alignment{alignof(slab_cache)};

std::string size_name(std::size_t bytes) {
  return bytes >= 1024 && bytes % 1024 == 0 ? fmt::format("{}k", bytes / 1024)
                                            : fmt::format("{}", bytes);
}

}  // namespace

static_assert(general_cache::class_bytes(general_cache::class_count - 1) ==
              general_cache::max_bytes);
static_assert(general_cache::class_of(general_cache::max_bytes) == general_cache::class_count - 1);

general_cache::general_cache(arena& memory, std::size_t largest_bytes, std::byte* storage) noexcept
    : arena_(memory),
      base_(memory.memory().data()),
      arena_bytes_(memory.memory().size()),
      largest_bytes_(largest_bytes),
      storage_(storage) {}

result<std::unique_ptr<general_cache>> general_cache::create(arena& memory, const options& opts) {
  if (opts.largest_bytes == 0 || opts.largest_bytes > max_bytes) return fail(EINVAL);
  const unsigned classes = class_of(opts.largest_bytes) + 1;
  auto* const storage = static_cast<std::byte*>(
      ::operator new(classes * sizeof(slab_cache), storage_alignment, std::nothrow));
  if (storage == nullptr) return fail(ENOMEM);
  std::unique_ptr<general_cache> made(new (std::nothrow)
                                          general_cache(memory, class_bytes(classes - 1), storage));
  if (made == nullptr) {
    ::operator delete(storage, storage_alignment);
    return fail(ENOMEM);
  }
  const std::size_t cached =
      opts.cpu_cache_bytes != 0 ? opts.cpu_cache_bytes : memory.memory().size() / cached_share;
  for (unsigned i = 0; i < classes; ++i) {
    const auto r = slab_cache::make_at(
        storage + i * sizeof(slab_cache), memory,
        {.name =
             opts.name.empty() ? "" : fmt::format("{}-{}", opts.name, size_name(class_bytes(i))),
         .object_bytes = class_bytes(i),
         .debug = opts.debug || slab_debug::asked_for(opts.name),
         .cpu_cache_bytes = cached / classes,
         .registry = opts.registry,
         .number_if_name_is_taken = opts.number_if_name_is_taken});
    if (!r) return fail(r.error());
    ++made->made_;
  }
  return made;
}

general_cache::~general_cache() {
  for (unsigned i = made_; i-- > 0;) cache_at(i).~slab_cache();
  ::operator delete(storage_, storage_alignment);
}

void* general_cache::allocate_after_shrink(slab_cache& cache) noexcept {
  // Another thread may have been faster to take it; but then it was of use.
  return shrink() != 0 ? cache.allocate() : nullptr;
}

std::size_t general_cache::shrink() noexcept {
  std::size_t bytes = 0;
  for (unsigned i = 0; i < made_; ++i) bytes += cache_at(i).shrink();
  return bytes;
}

void general_cache::misused(const void* object) const noexcept {
  symbolizer names;
  const std::string text = fmt::format(
      "forebay: general cache \"{}\": free of what is no object of it: {}\n  seen here:\n{}",
      cache_at(0).name(), object, names.describe(stack_trace::capture()));
  std::fputs(text.c_str(), stderr);
  std::abort();
}

}  // namespace forebay
