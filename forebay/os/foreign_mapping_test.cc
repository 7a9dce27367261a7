// One thread: not in the thread sanitizer's tree.

#include "forebay/os/foreign_mapping.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include "forebay/os/fd.h"

namespace forebay {
namespace {

unique_fd file_of(off_t bytes) {
  unique_fd fd(::memfd_create("foreign", MFD_CLOEXEC));
  EXPECT_EQ(::ftruncate(fd.get(), bytes), 0);
  return fd;
}

TEST(ForeignMapping, SharesAPartOfAFile) {
  const unique_fd fd = file_of(16384);
  auto m = foreign_mapping::map(fd.get(), 5000, 3000);
  ASSERT_TRUE(m);
  ASSERT_EQ(m->memory().size(), 3000u);
  m->memory()[0] = std::byte{7};
  std::byte there{};
  ASSERT_EQ(::pread(fd.get(), &there, 1, 5000), 1);
  EXPECT_EQ(there, std::byte{7});
  EXPECT_FALSE(m->damaged());
}

TEST(ForeignMapping, RefusesWhatIsNotThere) {
  const unique_fd fd = file_of(8192);
  EXPECT_EQ(foreign_mapping::map(fd.get(), 0, 0).error(), std::errc::invalid_argument);
  EXPECT_EQ(foreign_mapping::map(fd.get(), 0, 8193).error(), std::errc::invalid_argument);
  EXPECT_EQ(foreign_mapping::map(fd.get(), 8192, 1).error(), std::errc::invalid_argument);
  EXPECT_EQ(foreign_mapping::map(fd.get(), ~std::uint64_t{0}, 2).error(), errc::too_large);
  EXPECT_EQ(foreign_mapping::map(fd.get(), 0, ~std::uint64_t{0}).error(), errc::too_large);
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  const unique_fd in(ends[0]);
  const unique_fd out(ends[1]);
  EXPECT_EQ(foreign_mapping::map(in.get(), 0, 1).error(), std::errc::invalid_argument);
}

TEST(ForeignMapping, ReadsZerosWhereTheFileWasCutOff) {
  const unique_fd fd = file_of(16384);
  auto m = foreign_mapping::map(fd.get(), 0, 16384);
  auto other = foreign_mapping::map(fd.get(), 0, 4096);
  ASSERT_TRUE(m && other);
  m->memory()[0] = std::byte{1};
  m->memory()[9000] = std::byte{2};
  ASSERT_EQ(::ftruncate(fd.get(), 4096), 0);
  EXPECT_EQ(m->memory()[0], std::byte{1});
  EXPECT_FALSE(m->damaged());
  EXPECT_EQ(m->memory()[9000], std::byte{});
  EXPECT_TRUE(m->damaged());
  EXPECT_FALSE(other->damaged());
  m->memory()[12000] = std::byte{3};  // goes nowhere, and does no harm
  EXPECT_EQ(m->memory()[12000], std::byte{3});
}

// What is none of its business ends the process as it would have.
TEST(ForeignMappingDeathTest, LeavesOtherFaultsAlone) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const unique_fd fd = file_of(4096);
  const auto m = foreign_mapping::map(fd.get(), 0, 4096);
  ASSERT_TRUE(m);
  auto* const p =
      static_cast<volatile char*>(::mmap(nullptr, 4096, PROT_READ, MAP_SHARED, fd.get(), 0));
  ASSERT_EQ(::ftruncate(fd.get(), 0), 0);
  EXPECT_DEATH(static_cast<void>(*p), "");
}

TEST(EventFd, OfOthersIsTakenOnlyIfItIsOne) {
  auto own = make_event_fd();
  ASSERT_TRUE(own);
  EXPECT_TRUE(adopt_event_fd(own->get()));
  drain_event_fd(own->get());  // does not wait
  signal_event_fd(own->get());
  drain_event_fd(own->get());
  std::uint64_t n = 0;
  EXPECT_EQ(::read(own->get(), &n, sizeof n), -1);
  EXPECT_EQ(errno, EAGAIN);
  // Full: neither does a signal wait.
  n = ~std::uint64_t{0} - 1;
  ASSERT_EQ(::write(own->get(), &n, sizeof n), 8);
  signal_event_fd(own->get());
  EXPECT_EQ(adopt_event_fd(file_of(1).get()).error(), std::errc::invalid_argument);
  EXPECT_FALSE(adopt_event_fd(-1));
}

}  // namespace
}  // namespace forebay
