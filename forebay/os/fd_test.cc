#include "forebay/os/fd.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <pthread.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <thread>
#include <utility>

namespace forebay {
namespace {

bool is_open(int fd) { return ::fcntl(fd, F_GETFD) >= 0; }

int new_fd() { return ::dup(STDERR_FILENO); }

TEST(UniqueFd, ClosesWhatItOwnsOnce) {
  int number = -1;
  {
    unique_fd fd(new_fd());
    number = fd.get();
    EXPECT_TRUE(fd);
    unique_fd moved = std::move(fd);
    EXPECT_FALSE(fd);  // NOLINT(bugprone-use-after-move): that is the question
    EXPECT_EQ(moved.get(), number);
    EXPECT_TRUE(is_open(number));
  }
  EXPECT_FALSE(is_open(number));
  EXPECT_FALSE(unique_fd());
}

TEST(UniqueFd, AssignmentClosesTheOldOne) {
  unique_fd a(new_fd());
  unique_fd b(new_fd());
  const int old = a.get();
  const int kept = b.get();
  a = std::move(b);
  EXPECT_FALSE(is_open(old));
  EXPECT_EQ(a.get(), kept);
  unique_fd& same = a;
  a = std::move(same);
  EXPECT_TRUE(is_open(kept));
  a.reset();
  EXPECT_FALSE(is_open(kept));
  EXPECT_FALSE(a);
}

TEST(UniqueFd, ReleaseGivesTheDescriptorAway) {
  unique_fd a(new_fd());
  const int number = a.release();
  a.reset();
  EXPECT_TRUE(is_open(number));
  ::close(number);
}

bool readable(int fd, int timeout_ms) {
  pollfd p{fd, POLLIN, 0};
  return ::poll(&p, 1, timeout_ms) == 1;
}

TEST(EventFd, ASignalMakesItReadableUntilItIsRead) {
  const auto fd = make_event_fd();
  ASSERT_TRUE(fd);
  EXPECT_FALSE(readable(fd->get(), 0));
  std::thread([&] {
    signal_event_fd(fd->get());
    signal_event_fd(fd->get());
  }).join();
  EXPECT_TRUE(readable(fd->get(), 1'000));
  std::uint64_t count = 0;
  EXPECT_EQ(::read(fd->get(), &count, sizeof count), 8);
  EXPECT_EQ(count, 2u);
  EXPECT_FALSE(readable(fd->get(), 0));
  EXPECT_EQ(::fcntl(fd->get(), F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
}

TEST(EventFd, DrainingDoesNotWait) {
  const auto fd = make_event_fd();  // in blocking mode
  ASSERT_TRUE(fd);
  drain_event_fd(fd->get());  // nothing there
  signal_event_fd(fd->get());
  drain_event_fd(fd->get());
  EXPECT_FALSE(readable(fd->get(), 0));
}

TEST(SignalFd, ReadsTheSignalsThatItBlocks) {
  std::thread([] {  // the mask of this thread only
    const auto fd = make_signal_fd({SIGUSR1, SIGUSR2});
    ASSERT_TRUE(fd);
    EXPECT_FALSE(readable(fd->get(), 0));
    ASSERT_EQ(::pthread_kill(::pthread_self(), SIGUSR2), 0);
    signalfd_siginfo info{};
    ASSERT_TRUE(readable(fd->get(), 1'000));
    ASSERT_EQ(::read(fd->get(), &info, sizeof info), 128);
    EXPECT_EQ(info.ssi_signo, static_cast<unsigned>(SIGUSR2));
  })
      .join();
}

TEST(SignalFd, WaitsForOneOfItsSignals) {
  std::thread([] {
    const auto fd = make_signal_fd({SIGUSR1, SIGUSR2});
    ASSERT_TRUE(fd);
    const pthread_t self = ::pthread_self();
    std::thread sender([&] { ::pthread_kill(self, SIGUSR1); });
    EXPECT_EQ(wait_for_signal(fd->get()).value(), SIGUSR1);
    sender.join();
    EXPECT_EQ(wait_for_signal(-1).error().value(), EBADF);
    unblock_signals({SIGUSR1});
    sigset_t blocked;
    ASSERT_EQ(::pthread_sigmask(SIG_BLOCK, nullptr, &blocked), 0);
    EXPECT_FALSE(sigismember(&blocked, SIGUSR1));
    EXPECT_TRUE(sigismember(&blocked, SIGUSR2));
  }).join();
}

}  // namespace
}  // namespace forebay
