// The sandbox's second part: which system calls a running server makes.

#include <fcntl.h>
#include <linux/fs.h>
#include <linux/prctl.h>
#include <seccomp.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <cstdio>
#include <memory>

#include "forebay/base/sanitizer.h"
#include "forebay/os/sandbox.h"

namespace forebay {
namespace {

// Calls with any arguments.
constexpr int plain_calls[] = {
    // What a loop does, and the most frequent first.
    SCMP_SYS(io_uring_enter), SCMP_SYS(futex), SCMP_SYS(write), SCMP_SYS(read),
    SCMP_SYS(io_uring_register), SCMP_SYS(membarrier), SCMP_SYS(rseq), SCMP_SYS(getcpu),
    SCMP_SYS(sched_yield), SCMP_SYS(sched_getaffinity),
    // Files and sockets that are open.
    SCMP_SYS(readv), SCMP_SYS(writev), SCMP_SYS(pread64), SCMP_SYS(pwrite64), SCMP_SYS(preadv),
    SCMP_SYS(pwritev), SCMP_SYS(preadv2), SCMP_SYS(pwritev2), SCMP_SYS(fdatasync), SCMP_SYS(fsync),
    SCMP_SYS(sync_file_range), SCMP_SYS(fallocate), SCMP_SYS(ftruncate), SCMP_SYS(lseek),
    SCMP_SYS(fstat), SCMP_SYS(newfstatat), SCMP_SYS(statx), SCMP_SYS(fcntl), SCMP_SYS(flock),
    SCMP_SYS(fadvise64), SCMP_SYS(close), SCMP_SYS(recvfrom), SCMP_SYS(recvmsg), SCMP_SYS(sendto),
    SCMP_SYS(sendmsg), SCMP_SYS(sendfile), SCMP_SYS(accept4), SCMP_SYS(accept), SCMP_SYS(connect),
    SCMP_SYS(shutdown), SCMP_SYS(getsockopt), SCMP_SYS(setsockopt), SCMP_SYS(getsockname),
    SCMP_SYS(getpeername), SCMP_SYS(poll), SCMP_SYS(ppoll), SCMP_SYS(epoll_wait),
    SCMP_SYS(epoll_pwait), SCMP_SYS(epoll_ctl), SCMP_SYS(epoll_create1), SCMP_SYS(eventfd2),
    SCMP_SYS(signalfd4),
    // Names: Landlock says which.
    SCMP_SYS(readlink), SCMP_SYS(readlinkat), SCMP_SYS(access), SCMP_SYS(faccessat),
    SCMP_SYS(faccessat2), SCMP_SYS(stat), SCMP_SYS(lstat), SCMP_SYS(getdents64), SCMP_SYS(getcwd),
    SCMP_SYS(unlink), SCMP_SYS(unlinkat),
    // Memory.
    SCMP_SYS(munmap), SCMP_SYS(mremap), SCMP_SYS(madvise), SCMP_SYS(brk), SCMP_SYS(mincore),
    SCMP_SYS(mlock), SCMP_SYS(mlock2), SCMP_SYS(munlock), SCMP_SYS(mbind), SCMP_SYS(get_mempolicy),
    SCMP_SYS(set_mempolicy), SCMP_SYS(pkey_alloc), SCMP_SYS(pkey_free), SCMP_SYS(memfd_create),
    // The process and its threads, which end.
    SCMP_SYS(exit), SCMP_SYS(exit_group), SCMP_SYS(set_robust_list), SCMP_SYS(rt_sigaction),
    SCMP_SYS(rt_sigprocmask), SCMP_SYS(rt_sigreturn), SCMP_SYS(rt_sigtimedwait),
    SCMP_SYS(sigaltstack), SCMP_SYS(restart_syscall), SCMP_SYS(getpid), SCMP_SYS(gettid),
    SCMP_SYS(getuid), SCMP_SYS(geteuid), SCMP_SYS(getgid), SCMP_SYS(getegid), SCMP_SYS(getrlimit),
    SCMP_SYS(getrusage), SCMP_SYS(sysinfo), SCMP_SYS(uname), SCMP_SYS(clock_gettime),
    SCMP_SYS(clock_getres), SCMP_SYS(clock_nanosleep), SCMP_SYS(nanosleep), SCMP_SYS(gettimeofday),
    SCMP_SYS(time), SCMP_SYS(times), SCMP_SYS(getrandom)};

// Of block devices and terminals: questions only.
constexpr unsigned long controls[] = {TCGETS,       TIOCGWINSZ, FIONREAD,   FIONBIO,
                                      BLKGETSIZE64, BLKSSZGET,  BLKPBSZGET, BLKROGET};

constexpr unsigned socket_type_mask = 0xf;

struct filter_closer {
  void operator()(void* f) const noexcept { ::seccomp_release(f); }
};
using filter = std::unique_ptr<void, filter_closer>;

// Allows a call with the arguments that the comparisons are all true of.
template <typename... Compare>
int allow(const filter& f, int call, Compare... compare) noexcept {
  const std::array<scmp_arg_cmp, sizeof...(Compare)> all{compare...};
  return ::seccomp_rule_add_array(f.get(), SCMP_ACT_ALLOW, call, all.size(), all.data());
}
scmp_arg_cmp is(unsigned argument, std::uint64_t value) noexcept {
  return {.arg = argument, .op = SCMP_CMP_EQ, .datum_a = value, .datum_b = 0};
}
scmp_arg_cmp has(unsigned argument, std::uint64_t mask, std::uint64_t value) noexcept {
  return {.arg = argument, .op = SCMP_CMP_MASKED_EQ, .datum_a = mask, .datum_b = value};
}

// Calls that depend on their arguments. Returns 0 or a negative errno, as libseccomp does.
int allow_with_arguments(const filter& f) noexcept {
  int e = 0;
  const auto also = [&](auto... rule) {
    if (e == 0) e = allow(f, rule...);
  };
  for (const int call : {SCMP_SYS(mmap), SCMP_SYS(mprotect), SCMP_SYS(pkey_mprotect)}) {
    also(call, has(2, PROT_EXEC, 0));
  }
  constexpr std::uint64_t changes = O_ACCMODE | O_CREAT | O_TRUNC;
  also(SCMP_SYS(open), has(1, changes, O_RDONLY));
  also(SCMP_SYS(openat), has(2, changes, O_RDONLY));
  also(SCMP_SYS(socket), is(0, AF_UNIX), has(1, socket_type_mask, SOCK_DGRAM));
  for (const unsigned long control : controls) {
    also(SCMP_SYS(ioctl), has(1, UINT32_MAX, control));
  }
  also(SCMP_SYS(prctl), is(0, PR_SET_NAME));
  also(SCMP_SYS(prctl), is(0, PR_SET_VMA));
  // abort(3) and raise(3): this process only.
  also(SCMP_SYS(tgkill), is(0, static_cast<std::uint64_t>(::getpid())));
  also(SCMP_SYS(prlimit64), is(0, 0), is(2, 0));  // asked, not set
  return e;
}

// Names for the report: looked up before, because a signal handler must not.
constexpr std::size_t calls_max = 512;
constexpr std::size_t name_bytes_max = 32;
std::array<std::array<char, name_bytes_max>, calls_max> names{};  // set once, before the handler is

void look_names_up() noexcept {
  for (std::size_t i = 0; i < names.size(); ++i) {
    char* const name = ::seccomp_syscall_resolve_num_arch(SCMP_ARCH_NATIVE, static_cast<int>(i));
    if (name == nullptr) continue;
    std::snprintf(names[i].data(), names[i].size(), "%s", name);
    std::free(name);  // NOLINT(cppcoreguidelines-no-malloc): the library's
  }
}

void say(const char* text) noexcept {
  // There is nothing to do about an error.
  [[maybe_unused]] const ssize_t written =
      ::write(STDERR_FILENO, text, std::char_traits<char>::length(text));
}

// Says what was called, and ends the process as the kernel would have.
void on_forbidden_call(int signal, siginfo_t* info, void*) noexcept {
  const auto number = static_cast<unsigned>(info->si_syscall);
  std::array<char, 12> digits{};
  char* at = &digits.back();
  unsigned rest = number;
  do {
    *--at = static_cast<char>('0' + rest % 10);
    rest /= 10;
  } while (rest != 0);
  say("forebay: sandbox: the system call ");
  if (number < names.size() && names[number][0] != '\0') {
    say(names[number].data());
    say(" (");
    say(at);
    say(")");
  } else {
    say(at);
  }
  say(", or what it was asked to do, is not allowed here: the process ends. If it should be, "
      "please report this line; --no-sandbox does without the sandbox.\n");
  struct sigaction action{};
  action.sa_handler = SIG_DFL;
  ::sigaction(signal, &action, nullptr);
  ::raise(signal);  // taken when the handler returns
}

result<> report_forbidden_calls() noexcept {
  look_names_up();
  struct sigaction action{};
  action.sa_sigaction = on_forbidden_call;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  if (::sigaction(SIGSYS, &action, nullptr) != 0) return fail_errno();
  return {};
}

}  // namespace

result<> sandbox::close() {
  if (FOREBAY_ASAN || FOREBAY_TSAN) {
    remarks_.emplace_back("sandbox: this build has a sanitizer, so system calls are not filtered");
    return {};
  }
  const filter f(::seccomp_init(SCMP_ACT_TRAP));
  if (f == nullptr) return fail(ENOMEM);
  // Of all threads; and the filter as a binary tree, not a list.
  int e = ::seccomp_attr_set(f.get(), SCMP_FLTATR_CTL_TSYNC, 1);
  if (e == 0) e = ::seccomp_attr_set(f.get(), SCMP_FLTATR_CTL_OPTIMIZE, 2);
  if (e == 0) e = ::seccomp_attr_set(f.get(), SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);
  for (const int call : plain_calls) {
    if (e == 0) e = allow(f, call);
  }
  if (e == 0) e = allow_with_arguments(f);
  if (e != 0) return fail(-e);
  if (auto r = report_forbidden_calls(); !r) return r;
  if (e = ::seccomp_load(f.get()); e != 0) return fail(-e);
  return {};
}

}  // namespace forebay
