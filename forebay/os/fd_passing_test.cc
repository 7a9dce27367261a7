// One thread: not in the thread sanitizer's tree.

#include "forebay/os/fd_passing.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <string_view>
#include <vector>

namespace forebay {
namespace {

bool same_file(int a, int b) {
  struct stat x{};
  struct stat y{};
  return ::fstat(a, &x) == 0 && ::fstat(b, &y) == 0 && x.st_ino == y.st_ino && x.st_dev == y.st_dev;
}

// A pipe end has an inode of its own, so that it can be told from any other file.
struct test_pipe {
  test_pipe() { EXPECT_EQ(::pipe(fds), 0); }
  ~test_pipe() {
    for (const int fd : fds) ::close(fd);
  }
  int fds[2] = {-1, -1};
};

class FdPassing : public testing::Test {
 protected:
  void SetUp() override {
    auto s = make_socket_pair();
    ASSERT_TRUE(s);
    sockets = std::move(*s);
  }
  socket_pair sockets;
  std::array<std::byte, 64> buffer{};
  std::array<unique_fd, fds_per_message_max> came;
};

TEST_F(FdPassing, BytesAndDescriptorsArriveTogether) {
  const test_pipe a;
  const test_pipe b;
  const std::string_view text = "two pipes";
  const std::array fds = {a.fds[0], b.fds[1]};
  ASSERT_TRUE(send_with_fds(sockets.first.get(), std::as_bytes(std::span(text)), fds));
  const auto r = receive_with_fds(sockets.second.get(), buffer, came);
  ASSERT_TRUE(r) << r.error().message();
  EXPECT_EQ(r->bytes, text.size());
  ASSERT_EQ(r->fds, 2u);
  EXPECT_TRUE(same_file(came[0].get(), a.fds[0]));
  EXPECT_TRUE(same_file(came[1].get(), b.fds[1]));
  EXPECT_NE(came[0].get(), a.fds[0]);
  EXPECT_EQ(std::memcmp(buffer.data(), text.data(), text.size()), 0);
}

TEST_F(FdPassing, AsManyAsFitAndNoMore) {
  const test_pipe p;
  const std::vector<int> fds(fds_per_message_max, p.fds[0]);
  const std::byte byte{1};
  ASSERT_TRUE(send_with_fds(sockets.first.get(), {&byte, 1}, fds));
  const auto r = receive_with_fds(sockets.second.get(), buffer, came);
  ASSERT_TRUE(r);
  EXPECT_EQ(r->fds, fds_per_message_max);
  const std::vector<int> more(fds_per_message_max + 1, p.fds[0]);
  EXPECT_EQ(send_with_fds(sockets.first.get(), {&byte, 1}, more).error().value(), EINVAL);
  EXPECT_EQ(send_with_fds(sockets.first.get(), {}, {}).error().value(), EINVAL);
  EXPECT_EQ(receive_with_fds(sockets.second.get(), {}, came).error().value(), EINVAL);
}

TEST_F(FdPassing, MoreThanThereIsRoomForAreClosed) {
  test_pipe p;
  const std::byte byte{1};
  const std::array fds = {p.fds[1], p.fds[1]};
  ASSERT_TRUE(send_with_fds(sockets.first.get(), {&byte, 1}, fds));
  ::close(std::exchange(p.fds[1], ::dup(p.fds[0])));
  EXPECT_EQ(receive_with_fds(sockets.second.get(), buffer, std::span(came).first(1)).error(),
            errc::protocol);
  EXPECT_FALSE(came[0]);
  // Nobody holds the writing end any more: the reading end is at its end.
  char c = 0;
  EXPECT_EQ(::read(p.fds[0], &c, 1), 0);
}

TEST_F(FdPassing, TellsTheEndOfTheStream) {
  sockets.first.reset();
  EXPECT_EQ(receive_with_fds(sockets.second.get(), buffer, came).error(), errc::end_of_stream);
  const std::byte byte{1};
  EXPECT_EQ(send_with_fds(sockets.second.get(), {&byte, 1}, {}).error().value(), EPIPE);
}

}  // namespace
}  // namespace forebay
