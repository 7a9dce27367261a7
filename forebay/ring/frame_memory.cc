#include "forebay/ring/frame_memory.h"

#include <new>

#include "forebay/ring/executor.h"

namespace forebay::detail {
namespace {

// In front of each frame, which it keeps aligned.
struct alignas(__STDCPP_DEFAULT_NEW_ALIGNMENT__) frame_header {
  frame_memory* from;  // null: the heap
};

}  // namespace

void* allocate_frame(std::size_t bytes) noexcept {
  const executor* here = executor::current();
  frame_memory* const from = here == nullptr ? nullptr : here->frames();
  const std::size_t all = sizeof(frame_header) + bytes;
  void* const memory = from == nullptr ? ::operator new(all, std::nothrow) : from->allocate(all);
  if (memory == nullptr) return nullptr;
  return new (memory) frame_header{from} + 1;
}

void free_frame(void* frame, std::size_t bytes) noexcept {
  frame_header* const header = static_cast<frame_header*>(frame) - 1;
  if (header->from == nullptr) {
    ::operator delete(header);
  } else {
    header->from->free(header, sizeof(frame_header) + bytes);
  }
}

}  // namespace forebay::detail
