#include "forebay/os/protection.h"

#include <link.h>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <csignal>

#include "forebay/base/sanitizer.h"

#if FOREBAY_ASAN
#include <sanitizer/asan_interface.h>
#endif

namespace forebay {
namespace {

// A key without rights, or -1. Threads begin with no rights to any key but the first (the kernel's
// init_pkru), or with those of who started them: so nobody ever has rights to this one.
int closed_key() noexcept {
  static const int key = ::pkey_alloc(0, PKEY_DISABLE_ACCESS);
  return key;
}

fault_explainer explainer = nullptr;    // set once, before the handler is installed
struct sigaction earlier_fault_action;  // as explainer

void print_explanation(const void* address) noexcept {
  std::array<char, 1024> text;
  const std::size_t size = explainer(address, std::span(text).first(text.size() - 1));
  if (size == 0) return;
  text[size] = '\n';
  // There is nothing to do about an error.
  [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, text.data(), size + 1);
}

// Explains, and then lets the access happen again under the earlier action.
void explain_signal(int number, siginfo_t* info, void*) noexcept {
  const int error = errno;
  print_explanation(info->si_addr);
  ::sigaction(number, &earlier_fault_action, nullptr);
  errno = error;
}

#if FOREBAY_ASAN
void explain_report(const char*) { print_explanation(__asan_get_report_address()); }
#endif

struct stack_bounds {
  std::uintptr_t first = 0;
  std::uintptr_t end = 0;
};

stack_bounds bounds_of_own_stack() noexcept {
  pthread_attr_t attributes;
  if (::pthread_getattr_np(::pthread_self(), &attributes) != 0) return {};
  void* lowest = nullptr;
  std::size_t bytes = 0;
  ::pthread_attr_getstack(&attributes, &lowest, &bytes);
  ::pthread_attr_destroy(&attributes);
  const auto first = std::bit_cast<std::uintptr_t>(lowest);
  return {.first = first, .end = first + bytes};
}

// For dl_iterate_phdr(): 1, which ends it, if the module has the memory among its constants.
int look_for_constants(dl_phdr_info* module, std::size_t, void* wanted) {
  const auto& memory = *static_cast<std::span<const std::byte>*>(wanted);
  const auto first = std::bit_cast<std::uintptr_t>(memory.data());
  for (const ElfW(Phdr) & part : std::span(module->dlpi_phdr, module->dlpi_phnum)) {
    const bool constant =
        (part.p_type == PT_LOAD && (part.p_flags & PF_W) == 0) || part.p_type == PT_GNU_RELRO;
    const std::uintptr_t start = module->dlpi_addr + part.p_vaddr;
    if (constant && first < start + part.p_memsz && start < first + memory.size()) return 1;
  }
  return 0;
}

}  // namespace

bool has_protection_key() noexcept { return closed_key() >= 0; }

result<> protect(std::span<std::byte> pages, memory_access access) noexcept {
  const int right = access == memory_access::read_write  ? PROT_READ | PROT_WRITE
                    : access == memory_access::read_only ? PROT_READ
                                                         : PROT_NONE;
  if (has_protection_key()) {
    const bool closed = access == memory_access::none;
    const int key = closed ? closed_key() : 0;
    if (::pkey_mprotect(pages.data(), pages.size(), closed ? PROT_READ | PROT_WRITE : right, key) !=
        0)
      return fail_errno();
    return {};
  }
  if (::mprotect(pages.data(), pages.size(), right) != 0) return fail_errno();
  return {};
}

void explain_faults(fault_explainer explain) noexcept {
  static const bool installed = [explain] {
    explainer = explain;
    struct sigaction action{};
    action.sa_sigaction = explain_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    ::sigaction(SIGSEGV, nullptr, &earlier_fault_action);
    ::sigaction(SIGSEGV, &action, nullptr);
#if FOREBAY_ASAN
    __asan_set_error_report_callback(explain_report);
#endif
    return true;
  }();
  static_cast<void>(installed);
}

bool on_own_stack(const void* address) noexcept {
  thread_local const stack_bounds bounds = bounds_of_own_stack();
  const auto at = std::bit_cast<std::uintptr_t>(address);
  if (at >= bounds.first && at < bounds.end) return true;
#if FOREBAY_ASAN
  void* const frames = __asan_get_current_fake_stack();
  return frames != nullptr && __asan_addr_is_in_fake_stack(frames, const_cast<void*>(address),
                                                           nullptr, nullptr) != nullptr;
#else
  return false;
#endif
}

bool in_program_constants(std::span<const std::byte> memory) noexcept {
  return ::dl_iterate_phdr(look_for_constants, &memory) != 0;
}

}  // namespace forebay
