// A thread of control with a stack of its own that runs until it switches to another one by itself.
//
//   fiber::main()   the stack of the thread that explores
//   fiber           a stack of its own; start() makes the next switch to it begin at the entry
//
// A switch is some ten instructions on x86-64 and swapcontext(3), which makes a system call,
// elsewhere. A fiber may be started again while its last run stands in the middle of a function:
// what lies on its stack is forgotten, and no destructor runs. The sanitizers are told of every
// switch; with the thread sanitizer a fiber that is started again is a new one to it.
//
// All fibers belong to one thread.
#pragma once

#include <cstddef>
#include <memory>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#include "forebay/base/sanitizer.h"

namespace forebay::explorer {

class fiber {
 public:
  // Never returns: the last thing it does is a switch_to() another fiber.
  using entry = void (*)(void* argument);

  explicit fiber(std::size_t stack_bytes);
  ~fiber();
  fiber(const fiber&) = delete;
  fiber& operator=(const fiber&) = delete;

  // The calling thread's own stack.
  static fiber& main() noexcept;
  // The one that runs.
  static fiber& current() noexcept;

  bool is_main() const noexcept { return stack_bytes_ == 0; }

  // The next switch to this fiber calls e(argument) on an empty stack. Not from itself.
  void start(entry e, void* argument) noexcept;

  // Goes on where `this` last stopped; returns when somebody switches back to the caller.
  void switch_to() noexcept;

 private:
  fiber() noexcept = default;  // main()
  static void enter() noexcept;
  void switch_stack(fiber& from) noexcept;
  void forget() noexcept;

  std::unique_ptr<std::byte[]> stack_;
  std::size_t stack_bytes_ = 0;
  entry entry_ = nullptr;
  void* argument_ = nullptr;
  bool started_ = false;  // its stack is in use
  [[maybe_unused]] bool dying_ =
      false;  // is only switched to, to let the sanitizer forget its stack
#if defined(__x86_64__)
  void* stack_pointer_ = nullptr;
#else
  ucontext_t context_{};
#endif
  // What the sanitizers know this stack by.
  [[maybe_unused]] void* fake_stack_ = nullptr;
  [[maybe_unused]] const void* bottom_ = nullptr;
  [[maybe_unused]] std::size_t bytes_ = 0;
  [[maybe_unused]] void* tsan_fiber_ = nullptr;
};

}  // namespace forebay::explorer
