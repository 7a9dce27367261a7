// Memory for what runs inside an execution.
//
// An execution that is given up leaves its objects where they stand, and there are millions of
// them. So while one runs, operator new takes from a region that the next one starts over with;
// operator delete does nothing there, so no memory is used twice in one execution, and the
// same execution has the same addresses each time. The explorer's own tables are on malloc().
#pragma once

#include <cstddef>
#include <cstdlib>
#include <new>

namespace forebay::explorer {

class execution_heap {
 public:
  // Between these, operator new and delete of the calling thread work in the region.
  static void enter() noexcept;
  static void leave() noexcept;

  // Everything in the region is gone.
  static void reset() noexcept;
};

template <typename T>
struct own_memory {
  using value_type = T;
  own_memory() noexcept = default;
  template <typename U>
  explicit own_memory(const own_memory<U>&) noexcept {}

  T* allocate(std::size_t n) {
    void* const memory = std::malloc(n * sizeof(T));
    if (memory == nullptr) std::abort();
    return static_cast<T*>(memory);
  }
  void deallocate(T* memory, std::size_t) noexcept { std::free(memory); }
  bool operator==(const own_memory&) const noexcept { return true; }
};

}  // namespace forebay::explorer
