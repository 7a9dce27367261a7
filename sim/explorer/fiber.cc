#include "sim/explorer/fiber.h"

#include <cstdint>

#include "forebay/base/assert.h"

#if FOREBAY_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if FOREBAY_TSAN
#include <sanitizer/tsan_interface.h>
#endif

#if defined(__x86_64__)
// Saves what a called function must keep (System V ABI, 3.2.1) on the stack of the one that leaves,
// and takes the same from the other stack. The floating-point control words are nobody's to change.
extern "C" void forebay_explorer_switch(void** from, void* to) noexcept;
asm(R"(
.text
.p2align 4
.globl forebay_explorer_switch
.hidden forebay_explorer_switch
.type forebay_explorer_switch, @function
forebay_explorer_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size forebay_explorer_switch, .-forebay_explorer_switch
)");
#endif

namespace forebay::explorer {
namespace {

thread_local fiber* running = nullptr;

}  // namespace

fiber& fiber::main() noexcept {
  static thread_local fiber own;
#if FOREBAY_TSAN
  if (own.tsan_fiber_ == nullptr) own.tsan_fiber_ = __tsan_get_current_fiber();
#endif
  return own;
}

fiber& fiber::current() noexcept { return running == nullptr ? main() : *running; }

fiber::fiber(std::size_t stack_bytes)
    : stack_(new std::byte[stack_bytes]), stack_bytes_(stack_bytes) {
  bottom_ = stack_.get();
  bytes_ = stack_bytes;
}

fiber::~fiber() {
  if (stack_bytes_ == 0) return;
  forget();
#if FOREBAY_TSAN
  if (tsan_fiber_ != nullptr) __tsan_destroy_fiber(tsan_fiber_);
#endif
}

// The sanitizers' records of the frames that lie on the stack go.
void fiber::forget() noexcept {
  if (!started_) return;
  started_ = false;
#if FOREBAY_ASAN
  dying_ = true;
  switch_to();
  dying_ = false;
  ASAN_UNPOISON_MEMORY_REGION(stack_.get(), stack_bytes_);
#endif
}

void fiber::start(entry e, void* argument) noexcept {
  FOREBAY_ASSERT(this != &current());
  forget();
#if FOREBAY_TSAN
  if (tsan_fiber_ != nullptr) __tsan_destroy_fiber(tsan_fiber_);
  tsan_fiber_ = __tsan_create_fiber(0);
#endif
  entry_ = e;
  argument_ = argument;
#if defined(__x86_64__)
  const auto top =
      reinterpret_cast<std::uintptr_t>(stack_.get() + stack_bytes_) & ~std::uintptr_t{15};
  auto* at = reinterpret_cast<void**>(top);
  *--at = nullptr;  // where enter() would return to, did it return
  *--at = reinterpret_cast<void*>(&enter);
  for (int i = 0; i < 6; ++i) *--at = nullptr;  // the registers that a switch takes
  stack_pointer_ = at;
#else
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack_.get();
  context_.uc_stack.ss_size = stack_bytes_;
  context_.uc_link = nullptr;
  makecontext(&context_, reinterpret_cast<void (*)()>(&enter), 0);
#endif
}

void fiber::enter() noexcept {
  fiber& self = *running;
  self.started_ = true;
#if FOREBAY_ASAN
  fiber& own = main();
  const void* bottom = nullptr;
  std::size_t bytes = 0;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &bytes);
  if (own.bottom_ == nullptr) {  // the first to come here comes from main()
    own.bottom_ = bottom;
    own.bytes_ = bytes;
  }
#endif
  self.entry_(self.argument_);
  FOREBAY_ASSERT(!"a fiber's entry returned");
}

void fiber::switch_stack(fiber& from) noexcept {
#if defined(__x86_64__)
  forebay_explorer_switch(&from.stack_pointer_, stack_pointer_);
#else
  swapcontext(&from.context_, &context_);
#endif
}

void fiber::switch_to() noexcept {
  fiber& from = current();
  running = this;
#if FOREBAY_ASAN
  __sanitizer_start_switch_fiber(&from.fake_stack_, bottom_, bytes_);
#endif
#if FOREBAY_TSAN
  __tsan_switch_to_fiber(tsan_fiber_, 0);
#endif
  switch_stack(from);
#if FOREBAY_ASAN
  // Of a stack that is to be forgotten the record is not kept when it is left for good.
  while (from.dying_) {
    __sanitizer_finish_switch_fiber(from.fake_stack_, nullptr, nullptr);
    fiber& back = main();
    running = &back;
    __sanitizer_start_switch_fiber(nullptr, back.bottom_, back.bytes_);
    back.switch_stack(from);
  }
  __sanitizer_finish_switch_fiber(from.fake_stack_, nullptr, nullptr);
#endif
}

}  // namespace forebay::explorer
