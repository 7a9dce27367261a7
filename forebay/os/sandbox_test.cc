// One thread: each test's sandbox is a child's, and so is the one thread that is started.

#include "forebay/os/sandbox.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <cstdlib>
#include <functional>
#include <thread>

#include "forebay/base/sanitizer.h"
#include "forebay/os/cgroup.h"
#include "forebay/os/fd.h"
#include "forebay/os/test_directory.h"
#include "forebay/os/test_process.h"
#include "forebay/os/uring.h"

namespace forebay {
namespace {

constexpr bool has_filter = !FOREBAY_ASAN && !FOREBAY_TSAN;

// A directory with a file in it.
class Sandbox : public testing::Test {
 protected:
  void SetUp() override { unique_fd(::open(file.c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0600)); }

  // How a process ends that does it within the sandbox: its exit status or the negative number of a
  // signal. `said` is what it had to say.
  int end_of(const std::function<int()>& body, const std::function<void(sandbox&)>& allow = {}) {
    std::array<int, 2> ends{};
    EXPECT_EQ(::pipe2(ends.data(), O_CLOEXEC), 0);
    unique_fd in(ends[0]);
    unique_fd out(ends[1]);
    test_process child([&] {
      ::dup2(out.get(), STDERR_FILENO);
      // A core file of what is to end so would only cost time.
      ::prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
      sandbox box;
      box.allow_own_state();
      if (allow) allow(box);
      if (!box.confine() || !box.close()) return 250;
      return body();
    });
    out.reset();
    said.clear();
    std::array<char, 512> text{};
    for (ssize_t n = 0; (n = ::read(in.get(), text.data(), text.size())) > 0;) {
      said.append(text.data(), static_cast<std::size_t>(n));
    }
    return child.wait();
  }

  const test_directory directory;
  const std::string file = directory.file("file");
  std::string said;
};

int error_of(bool good) noexcept { return good ? 0 : errno; }

TEST_F(Sandbox, FilesThatWereNotAllowedCannotBeOpened) {
  EXPECT_EQ(end_of([&] { return error_of(::open(file.c_str(), O_RDONLY) >= 0); }), EACCES);
  EXPECT_EQ(end_of([&] { return error_of(::open(file.c_str(), O_RDONLY) >= 0); },
                   [&](sandbox& box) { box.allow_read(file); }),
            0);
  EXPECT_EQ(end_of([&] { return error_of(::unlink(file.c_str()) == 0); }), EACCES);
  EXPECT_EQ(end_of([&] { return error_of(::unlink(file.c_str()) == 0); },
                   [&](sandbox& box) { box.allow_remove(directory.path()); }),
            0);
  // What the library itself reads while it runs.
  EXPECT_EQ(end_of([] { return anonymous_bytes() == UINT64_MAX ? 1 : 0; }), 0);
}

TEST_F(Sandbox, WhatIsOpenStaysUsable) {
  const unique_fd open_file(::open(file.c_str(), O_RDWR | O_CLOEXEC));
  EXPECT_EQ(end_of([&] {
              if (::pwrite(open_file.get(), "abc", 3, 0) != 3) return errno;
              return error_of(::ftruncate(open_file.get(), 4096) == 0 &&
                              ::fdatasync(open_file.get()) == 0);
            }),
            0);
  struct stat st{};
  ASSERT_EQ(::fstat(open_file.get(), &st), 0);
  EXPECT_EQ(st.st_size, 4096);
}

struct forbidden {
  const char* name;  // of the system call, as the report has it
  std::function<long()> call;
};

TEST_F(Sandbox, AForbiddenCallIsNamedAndEndsTheProcess) {
  if (!has_filter) GTEST_SKIP() << "this build has a sanitizer";
  std::array<char*, 2> arguments{const_cast<char*>("true"), nullptr};
  const forbidden calls[] = {
      {"execve", [&] { return ::execve("/bin/true", arguments.data(), nullptr); }},
      {"socket", [] { return ::socket(AF_INET, SOCK_STREAM, 0); }},
      {"socket", [] { return ::socket(AF_UNIX, SOCK_STREAM, 0); }},
      {"ptrace", [] { return ::ptrace(PTRACE_TRACEME, 0, nullptr, nullptr); }},
      {"kill", [parent = ::getpid()] { return ::kill(parent, 0); }},
      {"clone", [] { return ::fork(); }},
      {"openat", [&] { return ::open((file + "2").c_str(), O_CREAT | O_WRONLY, 0600); }},
      {"mmap",
       [] {
         return std::bit_cast<long>(
             ::mmap(nullptr, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
       }},
      {"io_uring_setup", [] { return uring::create(8) ? 0 : -1; }},
      {"bpf", [] { return ::syscall(SYS_bpf, 0, nullptr, 0); }},
  };
  for (const forbidden& one : calls) {
    EXPECT_EQ(end_of([&] {
                one.call();
                return 0;
              }),
              -SIGSYS)
        << one.name << ": " << said;
    EXPECT_NE(said.find(std::string("the system call ") + one.name + " ("), std::string::npos)
        << one.name << ": " << said;
  }
}

TEST_F(Sandbox, AThreadFromBeforeIsInIt) {
  if (!has_filter) GTEST_SKIP() << "this build has a sanitizer";
  std::array<int, 2> ends{};
  ASSERT_EQ(::pipe2(ends.data(), O_CLOEXEC), 0);
  const unique_fd in(ends[0]);
  const unique_fd out(ends[1]);
  std::thread* early = nullptr;  // the child ends without it
  const int end = end_of(
      [&] {
        static_cast<void>(::write(out.get(), "x", 1));
        early->join();
        return 0;
      },
      [&](sandbox&) {
        early = new std::thread([&] {
          char go = 0;
          static_cast<void>(::read(in.get(), &go, 1));
          ::socket(AF_INET, SOCK_STREAM, 0);
        });
      });
  EXPECT_EQ(end, -SIGSYS);
  EXPECT_NE(said.find("the system call socket ("), std::string::npos) << said;
}

}  // namespace
}  // namespace forebay
