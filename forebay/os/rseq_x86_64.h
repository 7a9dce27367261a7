// The restartable sequences of rseq.h for x86-64, over the area that glibc registers for each
// thread.
//
// Each sequence begins by naming its descriptor in the area (`lea`, `mov`), and is the code between
// its labels 1 and 2. The kernel sends a thread that it interrupts there to label 4, behind the
// signature it demands, and that goes back to label 0. Descriptors and label 4 lie in sections of
// their own, which belong to the function's group (the ? of their flags), so that the linker drops
// them with the copies of an inline function that it drops. Offsets that the code uses are checked
// below.
//
// The statement must be volatile: GCC 12 takes an asm goto with outputs for one without side
// effects. The empty asm behind it keeps the same GCC from moving uses of the outputs before it (PR
// 113921).
#pragma once

#include <sys/rseq.h>

#include <algorithm>
#include <type_traits>

#include "forebay/os/rseq.h"

namespace forebay::cpu_stack {

static_assert(offsetof(item_stack, word) == 0 && offsetof(item_stack, capacity) == 8);
static_assert(offsetof(cpu_slot, loaded) == 0 && sizeof(cpu_slot) == 128);
static_assert(RSEQ_SIG == 0x53053053);

// %fs:4(off) is the CPU's number, %fs:8(off) the descriptor of the sequence in progress.
#define FOREBAY_RSEQ_BEGIN                 \
  ".pushsection __rseq_cs, \"aw?\"\n"      \
  ".balign 32\n"                           \
  "3:\n"                                   \
  ".long 0, 0\n"                           \
  ".quad 1f, 2f - 1f, 4f\n"                \
  ".popsection\n"                          \
  ".pushsection __rseq_failure, \"ax?\"\n" \
  ".byte 0x0f, 0xb9, 0x3d\n"               \
  ".long 0x53053053\n"                     \
  "4:\n"                                   \
  "jmp 0f\n"                               \
  ".popsection\n"                          \
  "0:\n"                                   \
  "leaq 3b(%%rip), %[a]\n"                 \
  "movq %[a], %%fs:8(%[off])\n"            \
  "1:\n"

// The stack of this CPU in %[a]; leaves by `nowhere` if there is no slot.
#define FOREBAY_RSEQ_FIND_STACK(nowhere) \
  "movl %%fs:4(%[off]), %k[a]\n"         \
  "cmpl %[limit], %k[a]\n"               \
  "jae " nowhere                         \
  "\n"                                   \
  "shlq $7, %[a]\n"                      \
  "movq (%[slots], %[a]), %[a]\n"

inline std::uint32_t cpu() noexcept {
  std::uint32_t number;
  asm volatile("movl %%fs:4(%[off]), %[number]" : [number] "=r"(number) : [off] "r"(__rseq_offset));
  return number;
}

inline bool pop(cpu_slot* slots, std::uint32_t slot_count, std::uint32_t& item) noexcept {
  std::uint64_t a;
  std::uint64_t top;
  asm volatile goto(FOREBAY_RSEQ_BEGIN FOREBAY_RSEQ_FIND_STACK("%l[none]")
           "movzwl (%[a]), %k[top]\n"
           "testl %k[top], %k[top]\n"
           "jz %l[none]\n"
           "movl 20(%[a], %[top], 4), %k[top]\n"
           "addq $0xffff, (%[a])\n"
           "2:\n"
           : [a] "=&r"(a), [top] "=&r"(top)
           : [off] "r"(__rseq_offset), [slots] "r"(slots), [limit] "r"(slot_count)
           : "memory", "cc"
           : none);
  asm volatile("");  // see the file's head
  item = static_cast<std::uint32_t>(top);
  return true;
none:
  return false;
}

inline bool push(cpu_slot* slots, std::uint32_t slot_count, std::uint32_t item) noexcept {
  std::uint64_t a;
  std::uint64_t top;
  asm volatile goto(FOREBAY_RSEQ_BEGIN FOREBAY_RSEQ_FIND_STACK("%l[full]")
           "movzwl (%[a]), %k[top]\n"
           "cmpl 8(%[a]), %k[top]\n"
           "jae %l[full]\n"
           "movl %[item], 24(%[a], %[top], 4)\n"
           "addq $1, (%[a])\n"
           "2:\n"
           : [a] "=&r"(a), [top] "=&r"(top)
           : [off] "r"(__rseq_offset), [slots] "r"(slots), [limit] "r"(slot_count), [item] "r"(item)
           : "memory", "cc"
           : full);
  asm volatile("");  // see the file's head
  return true;
full:
  return false;
}

// From `from` to `to`, `n` items (at least one) by four and then singly; `i` counts them.
#define FOREBAY_RSEQ_COPY_ITEMS         \
  "xorl %k[i], %k[i]\n"                 \
  "cmpl $4, %k[n]\n"                    \
  "jb 6f\n"                             \
  "5:\n"                                \
  "movdqu (%[from], %[i], 4), %%xmm0\n" \
  "movdqu %%xmm0, (%[to], %[i], 4)\n"   \
  "addl $4, %k[i]\n"                    \
  "leal 4(%k[i]), %k[item]\n"           \
  "cmpl %k[n], %k[item]\n"              \
  "jbe 5b\n"                            \
  "cmpl %k[n], %k[i]\n"                 \
  "jae 7f\n"                            \
  "6:\n"                                \
  "movl (%[from], %[i], 4), %k[item]\n" \
  "movl %k[item], (%[to], %[i], 4)\n"   \
  "addl $1, %k[i]\n"                    \
  "cmpl %k[n], %k[i]\n"                 \
  "jb 6b\n"                             \
  "7:\n"

// n = min(count, wanted); to[i] = items[count - n + i] for i < n; word += n * 0xffff.
inline std::uint32_t pop_some(cpu_slot* slots, std::uint32_t slot_count, std::uint32_t* to,
                              std::uint32_t wanted) noexcept {
  std::uint64_t a;
  std::uint64_t n;
  std::uint64_t i;
  std::uint64_t from;
  std::uint64_t item;
  if (wanted == 0) return 0;
  wanted = std::min(wanted, max_some);
  asm volatile goto(FOREBAY_RSEQ_BEGIN FOREBAY_RSEQ_FIND_STACK("%l[none]")
           "movzwl (%[a]), %k[from]\n"
           "movl %[wanted], %k[n]\n"
           "cmpl %k[n], %k[from]\n"
           "cmovbl %k[from], %k[n]\n"
           "testl %k[n], %k[n]\n"
           "jz %l[none]\n"
           "subl %k[n], %k[from]\n"
           "leaq 24(%[a], %[from], 4), %[from]\n"
           FOREBAY_RSEQ_COPY_ITEMS
           "imulq $0xffff, %[n], %[item]\n"
           "addq %[item], (%[a])\n"
           "2:\n"
           : [a] "=&r"(a), [n] "=&r"(n), [i] "=&r"(i), [from] "=&r"(from), [item] "=&r"(item)
           : [off] "r"(__rseq_offset), [slots] "r"(slots), [limit] "r"(slot_count), [to] "r"(to),
             [wanted] "r"(wanted)
           : "memory", "cc", "xmm0"
           : none);
  asm volatile("");  // see the file's head
  return static_cast<std::uint32_t>(n);
none:
  return 0;
}

// n = min(capacity - count, wanted); items[count + i] = from[i] for i < n; word += n.
inline std::uint32_t push_some(cpu_slot* slots, std::uint32_t slot_count, const std::uint32_t* from,
                               std::uint32_t wanted) noexcept {
  std::uint64_t a;
  std::uint64_t n;
  std::uint64_t i;
  std::uint64_t to;
  std::uint64_t item;
  if (wanted == 0) return 0;
  wanted = std::min(wanted, max_some);
  asm volatile goto(FOREBAY_RSEQ_BEGIN FOREBAY_RSEQ_FIND_STACK("%l[full]")
           "movzwl (%[a]), %k[to]\n"
           "movl 8(%[a]), %k[n]\n"
           "subl %k[to], %k[n]\n"
           "cmpl %[wanted], %k[n]\n"
           "cmoval %[wanted], %k[n]\n"
           "testl %k[n], %k[n]\n"
           "jz %l[full]\n"
           "leaq 24(%[a], %[to], 4), %[to]\n"
           FOREBAY_RSEQ_COPY_ITEMS
           "addq %[n], (%[a])\n"
           "2:\n"
           : [a] "=&r"(a), [n] "=&r"(n), [i] "=&r"(i), [to] "=&r"(to), [item] "=&r"(item)
           : [off] "r"(__rseq_offset), [slots] "r"(slots), [limit] "r"(slot_count),
             [from] "r"(from), [wanted] "r"(wanted)
           : "memory", "cc", "xmm0"
           : full);
  asm volatile("");  // see the file's head
  return static_cast<std::uint32_t>(n);
full:
  return 0;
}

inline bool replace(cpu_slot* slots, std::uint32_t cpu, item_stack* expected,
                    item_stack* replacement) noexcept {
  std::uint64_t a;
  asm volatile goto(FOREBAY_RSEQ_BEGIN
                    "cmpl %%fs:4(%[off]), %[cpu]\n"
                    "jne %l[changed]\n"
                    "movl %[cpu], %k[a]\n"
                    "shlq $7, %[a]\n"
                    "cmpq (%[slots], %[a]), %[expected]\n"
                    "jne %l[changed]\n"
                    "movq %[replacement], (%[slots], %[a])\n"
                    "2:\n"
                    : [a] "=&r"(a)
                    : [off] "r"(__rseq_offset), [slots] "r"(slots), [cpu] "r"(cpu),
                      [expected] "r"(expected), [replacement] "r"(replacement)
                    : "memory", "cc"
                    : changed);
  asm volatile("");  // see the file's head
  return true;
changed:
  return false;
}

// The words at the start of a slot: busy, closed.
template <std::size_t Stride>
inline void* try_lock(void* slots, std::uint32_t slot_count,
                      std::integral_constant<std::size_t, Stride> /*of slots*/) noexcept {
  std::uint64_t a;
  asm volatile goto(
      FOREBAY_RSEQ_BEGIN
      "movl %%fs:4(%[off]), %k[a]\n"
      "cmpl %[limit], %k[a]\n"
      "jae %l[taken]\n"
      "imulq %[stride], %[a], %[a]\n"
      "addq %[slots], %[a]\n"
      "cmpl $0, (%[a])\n"
      "jne %l[taken]\n"
      "cmpl $0, 4(%[a])\n"
      "jne %l[taken]\n"
      "movl $1, (%[a])\n"
      "2:\n"
      : [a] "=&r"(a)
      : [off] "r"(__rseq_offset), [slots] "r"(slots), [limit] "r"(slot_count), [stride] "i"(Stride)
      : "memory", "cc"
      : taken);
  asm volatile("");  // see the file's head
  return reinterpret_cast<void*>(a);
taken:
  return nullptr;
}

#undef FOREBAY_RSEQ_BEGIN
#undef FOREBAY_RSEQ_COPY_ITEMS
#undef FOREBAY_RSEQ_FIND_STACK

}  // namespace forebay::cpu_stack
