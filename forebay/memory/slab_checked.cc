// slab_cache where every object is looked at (debug mode, memory checkers), and its reports.
#include <fmt/format.h>

#include <cstdio>
#include <cstdlib>

#include "forebay/memory/slab.h"
#include "forebay/os/memory_checker.h"
#include "forebay/os/stack_trace.h"

namespace forebay {
namespace {

constexpr unsigned leaks_shown = 8;

}  // namespace

bool slab_cache::in_arena(const void* object) const noexcept {
  const auto distance = static_cast<std::size_t>(static_cast<const std::byte*>(object) - base_);
  return distance < arena_.memory().size();
}

bool slab_cache::owns_frame_of(const void* object) const noexcept {
  // relaxed: it does not change while an object of the slab is out.
  return in_arena(object) &&
         arena_.frame_at(object).private_data.load(std::memory_order_relaxed) == this;
}

bool slab_cache::is_free(const std::byte* object) const noexcept {
  const std::uint32_t handle = handle_of(object);
  // relaxed: lock_ orders the maps.
  const std::uint64_t map =
      arena_.frame(handle / frame_units).index.load(std::memory_order_relaxed);
  return (map >> handle % frame_units & 1) != 0;
}

void* slab_cache::allocate_checked() noexcept {
  std::uint32_t handle;
  if (take_from_slabs({&handle, 1}) == 0) {
    failures_.fetch_add(1, std::memory_order_relaxed);  // relaxed: a statistic
    return nullptr;
  }
  auto* const object = static_cast<std::byte*>(from_handle(handle));
  if (debug_) {
    check_object(object, false);
    layout_.note_allocation(object);
  } else {
    permit_access(object, options_.object_bytes, options_.construct != nullptr);
  }
  const scoped_lock hold(lock_);
  ++checked_allocations_;
  return object;
}

void slab_cache::free_checked(void* object) noexcept {
  if (!owns_frame_of(object)) misused(foreign(object).c_str(), object);
  page& head = head_of(arena_.frame_at(object));
  auto* const bytes = static_cast<std::byte*>(object);
  if ((bytes - base_) % (1 << handle_shift) != 0 || !is_object(head, handle_of(object))) {
    misused("free of what is inside an object", object);
  }
  bool free_already = false;
  {
    const scoped_lock hold(lock_);
    free_already = is_free(bytes);
  }
  if (free_already) misused("double free", object);
  if (debug_) {
    check_object(bytes, true);
    layout_.note_free(bytes);
  } else {
    forbid_access(object, stride_);
  }
  give({{handle_of(object)}});
}

void slab_cache::check_object(std::byte* object, bool in_use) const noexcept {
  const auto damage = layout_.find_damage(object, in_use);
  if (damage) misused(damage->what, object, slab_debug::describe(*damage));
}

void slab_cache::check() noexcept {
  if (!debug_) return;
  const scoped_lock hold(lock_);
  for (slab_list& list : lists_) {
    for (page& head : list) {
      each_object(head, [this](std::byte* object) { check_object(object, !is_free(object)); });
    }
  }
}

// What is freed here without being of this cache.
std::string slab_cache::foreign(const void* object) const {
  if (!in_arena(object)) return "free of what is not in the arena";
  // acquire: any frame may be looked at, and what is found is only compared.
  const void* const owner = arena_.frame_at(object).private_data.load(std::memory_order_acquire);
  const memory_registry& registry =
      options_.registry != nullptr ? *options_.registry : memory_registry::process();
  const std::string name = registry.name_of(owner);
  if (name.empty()) return "free of what is no slab's object";
  return fmt::format("free of an object of another cache, \"{}\",", name);
}

void slab_cache::misused(const char* what, const void* object,
                         const std::string& details) const noexcept {
  std::string text =
      fmt::format("forebay: slab cache \"{}\": {}: {}\n{}", name(), what, object, details);
  if (debug_ && owns_frame_of(object)) {
    const page& head = head_of(arena_.frame_at(object));
    const std::uint32_t offset =
        handle_of(object) - arena_.frame_of(head) * frame_units - start_of(head) + first_;
    const std::uint32_t number = offset / stride_units_;
    if (number < shape_of(head).count) {
      const auto* const start =
          head.data() + (std::size_t{start_of(head) + number * stride_units_} << handle_shift);
      text += fmt::format("  object {} of the slab at {}: {} bytes at {}\n", number,
                          static_cast<const void*>(head.data()), options_.object_bytes,
                          static_cast<const void*>(start));
      text += layout_.describe_owners(start);
    }
  }
  symbolizer names;
  text += "  seen here:\n" + names.describe(stack_trace::capture());
  std::fputs(text.c_str(), stderr);
  std::abort();
}

void slab_cache::report_leaks() noexcept {
  std::string text = fmt::format("forebay: slab cache \"{}\" is destroyed with {} objects in use\n",
                                 name(), objects_out());
  unsigned shown = 0;
  {
    const scoped_lock hold(lock_);
    for (slab_list& list : lists_) {
      for (page& head : list) {
        each_object(head, [&](std::byte* object) {
          if (is_free(object) || shown++ >= leaks_shown) return;
          text += fmt::format("  {}\n", static_cast<const void*>(object));
          if (debug_) text += layout_.describe_owners(object);
        });
      }
    }
  }
  std::fputs(text.c_str(), stderr);
  std::abort();
}

}  // namespace forebay
