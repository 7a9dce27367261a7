// Memory that this process may not touch for a while, and what is said when it does.
//
// By page tables (mprotect), or by a memory protection key where the processor has them: the key is
// one that no thread has the rights of, so that a stray access is told from other faults by its
// code (SEGV_PKUERR). System calls that are given such memory answer EFAULT either way; what has
// the pages pinned, as an io_uring has its registered buffers, reaches them.
//
// Protecting a part of a huge page splits it, in the page table at least, and it may stay split
// when the protection is gone. For debugging.
//
// Any thread; who protects the same pages from two threads has them take turns.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "forebay/base/result.h"

namespace forebay {

enum class memory_access : std::uint8_t { read_write, read_only, none };

inline constexpr std::size_t protection_bytes = 4096;  // what can be protected is multiples of it

// For private or shared memory that was mapped readable and writable. `pages` begins and ends at
// multiples of protection_bytes. Errors: EINVAL if it does not, or lies in huge pages of
// MAP_HUGETLB that it does not hold whole; ENOMEM when the process would have too many mappings
// (vm.max_map_count) or for memory that is not mapped. A part may have been changed then.
result<> protect(std::span<std::byte> pages, memory_access access) noexcept;

// Whether it is done by keys: the processor has them (pku in /proc/cpuinfo), the kernel gives them
// (ospke), and not all were taken when the process first asked.
bool has_protection_key() noexcept;

// Writes what is known of `address` as one line without an end into `out`, and returns its length;
// 0 if it knows nothing.
using fault_explainer = std::size_t (*)(const void* address, std::span<char> out) noexcept;

// From now on, when the process touches memory that it may not (SIGSEGV, or what the address
// sanitizer has been told), the explainer's line is printed to standard error before whatever would
// have happened without it: the signal's earlier handler, the sanitizer's report, or the end. The
// explainer runs on the thread that faulted, wherever that was. Does not change once set.
void explain_faults(fault_explainer explain) noexcept;

// Whether it lies on the stack of the calling thread (the address sanitizer's stand-ins for stack
// frames among it).
bool on_own_stack(const void* address) noexcept;

// Whether some of it lies in what the program or a library was loaded with that cannot be written:
// text, constants.
bool in_program_constants(std::span<const std::byte> memory) noexcept;

}  // namespace forebay
