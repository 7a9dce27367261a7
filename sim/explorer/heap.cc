// The program's operator new and delete are replaced here, for all threads; they are malloc() and
// free() except inside an execution. Not where a sanitizer has replaced them already: there what an
// execution leaves behind stays.
#include "sim/explorer/heap.h"

#include "sim/explorer/fiber.h"

#if FOREBAY_ASAN || FOREBAY_TSAN

namespace forebay::explorer {

void execution_heap::enter() noexcept {}
void execution_heap::leave() noexcept {}
void execution_heap::reset() noexcept {}

}  // namespace forebay::explorer

#else

#include <cstdint>

#include "forebay/base/assert.h"

namespace forebay::explorer {
namespace {

constexpr std::size_t region_bytes = std::size_t{4} << 20;

thread_local bool inside = false;
thread_local std::byte* region = nullptr;
thread_local std::size_t used = 0;

bool in_region(const void* p) noexcept {
  const auto address = reinterpret_cast<std::uintptr_t>(p);
  const auto start = reinterpret_cast<std::uintptr_t>(region);
  return region != nullptr && address - start < region_bytes;
}

void* take(std::size_t bytes, std::size_t alignment) noexcept {
  used = (used + alignment - 1) & ~(alignment - 1);
  FOREBAY_ASSERT(bytes <= region_bytes - used);
  void* const p = region + used;
  used += bytes == 0 ? 1 : bytes;
  return p;
}

void* allocate(std::size_t bytes, std::size_t alignment) noexcept {
  if (inside) return take(bytes, alignment);
  if (alignment <= __STDCPP_DEFAULT_NEW_ALIGNMENT__) return std::malloc(bytes == 0 ? 1 : bytes);
  return std::aligned_alloc(alignment, (bytes + alignment - 1) & ~(alignment - 1));
}

void* allocate_or_end(std::size_t bytes, std::size_t alignment) noexcept {
  void* const p = allocate(bytes, alignment);
  if (p == nullptr) std::abort();
  return p;
}

void release(void* p) noexcept {
  if (!in_region(p)) std::free(p);
}

}  // namespace

void execution_heap::enter() noexcept {
  if (region == nullptr) {
    region = static_cast<std::byte*>(std::aligned_alloc(4096, region_bytes));
    FOREBAY_ASSERT(region != nullptr);
  }
  inside = true;
}

void execution_heap::leave() noexcept { inside = false; }

void execution_heap::reset() noexcept { used = 0; }

}  // namespace forebay::explorer

using forebay::explorer::allocate;
using forebay::explorer::allocate_or_end;
using forebay::explorer::release;

namespace {

constexpr std::size_t common = __STDCPP_DEFAULT_NEW_ALIGNMENT__;

std::size_t number(std::align_val_t alignment) noexcept {
  return static_cast<std::size_t>(alignment);
}

}  // namespace

// clang-format off
void* operator new(std::size_t n) { return allocate_or_end(n, common); }
void* operator new[](std::size_t n) { return allocate_or_end(n, common); }
void* operator new(std::size_t n, const std::nothrow_t&) noexcept { return allocate(n, common); }
void* operator new[](std::size_t n, const std::nothrow_t&) noexcept { return allocate(n, common); }
void* operator new(std::size_t n, std::align_val_t a) { return allocate_or_end(n, number(a)); }
void* operator new[](std::size_t n, std::align_val_t a) { return allocate_or_end(n, number(a)); }
void* operator new(std::size_t n, std::align_val_t a, const std::nothrow_t&) noexcept {
  return allocate(n, number(a));
}
void* operator new[](std::size_t n, std::align_val_t a, const std::nothrow_t&) noexcept {
  return allocate(n, number(a));
}
void operator delete(void* p) noexcept { release(p); }
void operator delete[](void* p) noexcept { release(p); }
void operator delete(void* p, std::size_t) noexcept { release(p); }
void operator delete[](void* p, std::size_t) noexcept { release(p); }
void operator delete(void* p, std::align_val_t) noexcept { release(p); }
void operator delete[](void* p, std::align_val_t) noexcept { release(p); }
void operator delete(void* p, std::size_t, std::align_val_t) noexcept { release(p); }
void operator delete[](void* p, std::size_t, std::align_val_t) noexcept { release(p); }
void operator delete(void* p, const std::nothrow_t&) noexcept { release(p); }
void operator delete[](void* p, const std::nothrow_t&) noexcept { release(p); }
void operator delete(void* p, std::align_val_t, const std::nothrow_t&) noexcept { release(p); }
void operator delete[](void* p, std::align_val_t, const std::nothrow_t&) noexcept { release(p); }
// clang-format on

#endif
