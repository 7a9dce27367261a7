// One thread: not in the thread sanitizer's tree.

#include "forebay/os/shared_memory.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <thread>

#include "forebay/os/clock.h"
#include "forebay/os/fd_passing.h"
#include "forebay/os/shared_futex.h"
#include "forebay/os/test_await.h"
#include "forebay/os/test_process.h"

namespace forebay {
namespace {

unique_fd duplicate(int fd) { return unique_fd(::fcntl(fd, F_DUPFD_CLOEXEC, 0)); }

unique_fd memfd_of(std::size_t bytes, int seals) {
  unique_fd fd(::memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  EXPECT_EQ(::ftruncate(fd.get(), static_cast<off_t>(bytes)), 0);
  if (seals != 0) {
    EXPECT_EQ(::fcntl(fd.get(), F_ADD_SEALS, seals), 0);
  }
  return fd;
}

TEST(SharedMemory, IsZeroedAndTheSameThroughEveryMapping) {
  auto mine = shared_memory::create("test", 5000);
  ASSERT_TRUE(mine) << mine.error().message();
  EXPECT_EQ(mine->memory().size(), 8192u);
  EXPECT_TRUE(std::ranges::all_of(mine->memory(), [](std::byte b) { return b == std::byte{0}; }));
  auto theirs = shared_memory::open(duplicate(mine->fd()), 8192, 8192);
  ASSERT_TRUE(theirs) << theirs.error().message();
  ASSERT_NE(theirs->memory().data(), mine->memory().data());
  theirs->memory()[8191] = std::byte{7};
  EXPECT_EQ(mine->memory()[8191], std::byte{7});

  shared_memory moved = std::move(*mine);
  EXPECT_EQ(moved.memory()[8191], std::byte{7});
  EXPECT_TRUE(mine->memory().empty());
}

TEST(SharedMemory, CannotBeTruncatedOrUnsealed) {
  auto mine = shared_memory::create("test", 8192);
  ASSERT_TRUE(mine);
  for (const off_t size : {0, 4096, 16384}) {
    EXPECT_EQ(::ftruncate(mine->fd(), size), -1);
    EXPECT_EQ(errno, EPERM);
  }
  EXPECT_EQ(::fcntl(mine->fd(), F_ADD_SEALS, F_SEAL_WRITE), -1);
  // A hole is not the end of the memory.
  mine->memory()[4096] = std::byte{1};
  ASSERT_EQ(::fallocate(mine->fd(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 8192), 0);
  EXPECT_EQ(mine->memory()[4096], std::byte{0});
}

TEST(SharedMemory, RefusesSizesThatItCannotHave) {
  EXPECT_EQ(shared_memory::create("test", 0).error(), errc::too_small);
  EXPECT_EQ(shared_memory::create("test", shared_memory::bytes_max + 1).error(), errc::too_large);
  // As long a name as the kernel has no room for.
  EXPECT_EQ(shared_memory::create(std::string(300, 'x').c_str(), 1).error().value(), EINVAL);
}

TEST(SharedMemory, RefusesFilesThatCouldBeTakenAway) {
  constexpr int sealed = F_SEAL_SHRINK | F_SEAL_GROW;
  const auto error_of = [](unique_fd fd, std::size_t least = 1, std::size_t most = 1 << 20) {
    auto r = shared_memory::open(std::move(fd), least, most);
    return r ? std::error_code() : r.error();
  };
  EXPECT_FALSE(error_of(memfd_of(4096, sealed)));
  EXPECT_EQ(error_of(memfd_of(4096, 0)).value(), EPERM);
  EXPECT_EQ(error_of(memfd_of(4096, F_SEAL_GROW)).value(), EPERM);
  EXPECT_EQ(error_of(memfd_of(0, sealed)), errc::too_small);
  EXPECT_EQ(error_of(memfd_of(4096, sealed), 4097), errc::too_small);
  EXPECT_EQ(error_of(memfd_of(8192, sealed), 1, 4096), errc::too_large);
  EXPECT_EQ(error_of(memfd_of(4096, sealed | F_SEAL_WRITE)).value(), EPERM);
  EXPECT_EQ(error_of(unique_fd(::open("/proc/self/exe", O_RDONLY))).value(), EINVAL);
  EXPECT_EQ(error_of(unique_fd()).value(), EBADF);
  const std::string read_only = "/proc/self/fd/";
  const unique_fd source = memfd_of(4096, sealed);
  EXPECT_EQ(
      error_of(unique_fd(::open((read_only + std::to_string(source.get())).c_str(), O_RDONLY)))
          .value(),
      EACCES);
}

TEST(PeerWatch, KnowsWhenAProcessHasGone) {
  test_process child([] {
    ::pause();
    return 0;
  });
  auto watch = peer_watch::of_process(child.pid());
  ASSERT_TRUE(watch) << watch.error().message();
  EXPECT_FALSE(watch->gone());
  child.kill();
  // It counts as gone while it is a zombie.
  EXPECT_TRUE(eventually([&] { return watch->gone(); }));
  EXPECT_EQ(child.wait(), -SIGKILL);
  EXPECT_TRUE(watch->gone());
  EXPECT_FALSE(peer_watch::of_process(-1));
}

TEST(PeerWatch, KnowsWhenASocketIsClosed) {
  auto sockets = make_socket_pair();
  ASSERT_TRUE(sockets);
  auto watch = peer_watch::of_socket(sockets->first.get());
  ASSERT_TRUE(watch);
  EXPECT_FALSE(watch->gone());
  // Data is not the end.
  const std::byte byte{1};
  ASSERT_TRUE(send_with_fds(sockets->second.get(), {&byte, 1}, {}));
  EXPECT_FALSE(watch->gone());
  sockets->second.reset();
  EXPECT_TRUE(watch->gone());
  EXPECT_EQ(peer_watch::of_socket(-1).error().value(), EBADF);
}

TEST(SharedFutex, WakesAcrossProcesses) {
  auto memory = shared_memory::create("test", 4096);
  ASSERT_TRUE(memory);
  auto* words = new (memory->memory().data()) std::atomic<std::uint32_t>[2]{};
  constexpr std::uint32_t rounds = 500;
  // Each side waits for the other's word to reach the round. A wake that is lost shows as time.
  const auto play = [](shared_memory& m, bool first) {
    auto* w = reinterpret_cast<std::atomic<std::uint32_t>*>(m.memory().data());
    shared_futex futex(nullptr, 0);
    for (std::uint32_t i = 1; i <= rounds; ++i) {
      if (first) {
        w[0] = i;
        futex.wake(w[0]);
      }
      std::atomic<std::uint32_t>& other = w[first ? 1 : 0];
      for (std::uint32_t seen = other.load(); seen < i; seen = other.load()) {
        futex.wait(other, seen, 100'000'000'000);
      }
      if (!first) {
        w[1] = i;
        futex.wake(w[1]);
      }
    }
    return 0;
  };
  const std::uint64_t start = monotonic_clock::now_ns();
  test_process child([&] {
    auto theirs = shared_memory::open(duplicate(memory->fd()), 4096);
    return theirs ? play(*theirs, false) : 1;
  });
  play(*memory, true);
  EXPECT_EQ(child.wait(), 0);
  EXPECT_LT(monotonic_clock::now_ns() - start, 50'000'000'000u);
  EXPECT_EQ(words[1].load(), rounds);
}

TEST(SharedFutex, LooksAtItsPeerInTime) {
  test_process child([] {
    ::pause();
    return 0;
  });
  auto watch = peer_watch::of_process(child.pid());
  ASSERT_TRUE(watch);
  shared_futex futex(&*watch);
  std::atomic<std::uint32_t> word{0};
  const std::uint64_t start = futex.now_ns();
  futex.wait(word, 0, UINT64_MAX);
  EXPECT_LT(futex.now_ns() - start, 50'000'000'000u);
  EXPECT_FALSE(futex.gone());
  EXPECT_EQ(child.kill_and_wait(), -SIGKILL);
  EXPECT_TRUE(futex.gone());
  EXPECT_FALSE(shared_futex().gone());
}

}  // namespace
}  // namespace forebay
