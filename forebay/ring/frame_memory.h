// Where the frames of tasks come from.
//
//   executor ──frames()──> frame_memory        what a task on that executor is made of
//   no executor, or one without                the heap
//
// Each frame remembers in front of it where it came from, so it finds its way back whichever thread
// ends the task. A frame that cannot be had is no exception: see task.h.
#pragma once

#include <cstddef>

namespace forebay {

class frame_memory {
 public:
  // Memory aligned to 16 bytes, null when there is none.
  virtual void* allocate(std::size_t bytes) noexcept = 0;

  // Gives it back; any thread. `bytes` as it was asked for.
  virtual void free(void* memory, std::size_t bytes) noexcept = 0;

 protected:
  frame_memory() = default;
  frame_memory(const frame_memory&) = default;
  frame_memory& operator=(const frame_memory&) = default;
  ~frame_memory() = default;
};

namespace detail {

// A frame for the calling thread's executor; null when there is no memory.
void* allocate_frame(std::size_t bytes) noexcept;
void free_frame(void* frame, std::size_t bytes) noexcept;

}  // namespace detail

}  // namespace forebay
