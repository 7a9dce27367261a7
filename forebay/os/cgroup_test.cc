// One thread: not in the thread sanitizer's tree.

#include "forebay/os/cgroup.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>

namespace forebay {
namespace {

namespace fs = std::filesystem;

// A root directory of its own, with /proc/self and control groups as plain files.
class CgroupTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "forebay-cgroup-XXXXXX").string();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    root_ = name;
  }
  void TearDown() override { fs::remove_all(root_); }

  void write(const std::string& path, const std::string& text) {
    const fs::path p = root_ + path;
    fs::create_directories(p.parent_path());
    std::ofstream(p) << text;
  }

  void self(const std::string& groups, const std::string& mounts) {
    write("/proc/self/cgroup", groups);
    write("/proc/self/mountinfo", mounts);
  }

  void v2_group(const std::string& path, const std::string& max, const std::string& high,
                std::uint64_t current, const std::string& stat = "anon 1\n") {
    const std::string directory = "/sys/fs/cgroup" + path;
    write(directory + "/memory.max", max + "\n");
    write(directory + "/memory.high", high + "\n");
    write(directory + "/memory.current", std::to_string(current) + "\n");
    write(directory + "/memory.stat", stat);
  }

  void v1_group(const std::string& path, std::uint64_t limit, std::uint64_t soft,
                std::uint64_t usage, const std::string& stat = "cache 1\n") {
    const std::string directory = "/sys/fs/cgroup/memory" + path;
    write(directory + "/memory.limit_in_bytes", std::to_string(limit) + "\n");
    write(directory + "/memory.soft_limit_in_bytes", std::to_string(soft) + "\n");
    write(directory + "/memory.usage_in_bytes", std::to_string(usage) + "\n");
    write(directory + "/memory.stat", stat);
  }

  static constexpr std::uint64_t v1_none = 9223372036854771712u;
  static constexpr const char* v2_mount =
      "41 31 0:38 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw\n";
  static constexpr const char* v1_mount =
      "34 31 0:31 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"
      "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:7 - cgroup cgroup rw,memory\n";

  std::string root_;
};

TEST_F(CgroupTest, WithoutControlGroupsThereIsNone) {
  EXPECT_EQ(memory_cgroup::find(root_).error(), std::errc::no_such_file_or_directory);
  self("", "");
  EXPECT_EQ(memory_cgroup::find(root_).error(), std::errc::no_such_file_or_directory);
  // A group without the mount, the mount without a group, and neither with the controller's files.
  self("0::/a\n", "");
  EXPECT_FALSE(memory_cgroup::find(root_));
  self("", v2_mount);
  EXPECT_FALSE(memory_cgroup::find(root_));
  self("0::/a\n", v2_mount);
  EXPECT_FALSE(memory_cgroup::find(root_));
}

TEST_F(CgroupTest, LinesThatMakeNoSenseAreSkipped) {
  self("nonsense\n4:memory\n:\n\n0::/a\n", std::string("nonsense\n1 2 3 - x\n - \n\n") + v2_mount);
  v2_group("/a", "1000", "max", 10);
  const auto group = memory_cgroup::find(root_);
  ASSERT_TRUE(group);
  EXPECT_EQ(group->limit_bytes(), 1000u);
}

TEST_F(CgroupTest, V2TakesTheSmallestLimitUpTheTree) {
  self("0::/a/b/c\n", v2_mount);
  v2_group("/a", "2000", "max", 1900);
  v2_group("/a/b", "max", "3000", 1000);
  v2_group("/a/b/c", "max", "max", 900);
  const auto group = memory_cgroup::find(root_);
  ASSERT_TRUE(group);
  EXPECT_EQ(group->version(), cgroup_version::v2);
  ASSERT_EQ(group->directories().size(), 3u);
  EXPECT_EQ(group->directories()[0], root_ + "/sys/fs/cgroup/a/b/c");
  EXPECT_EQ(group->directories()[2], root_ + "/sys/fs/cgroup/a");
  EXPECT_EQ(group->limit_bytes(), 2000u);
  // The limits are read when they are asked for.
  v2_group("/a/b/c", "max", "1500", 900);
  EXPECT_EQ(group->limit_bytes(), 1500u);
}

TEST_F(CgroupTest, TheTightestIsTheOneWithTheLeastLeft) {
  self("0::/a/b\n", v2_mount);
  v2_group("/a", "9000", "max", 8900);  // 100 left, of which its neighbours took most
  v2_group("/a/b", "1000", "max", 500);
  const auto group = memory_cgroup::find(root_);
  ASSERT_TRUE(group);
  auto room = group->tightest();
  ASSERT_TRUE(room);
  EXPECT_EQ(room->limit_bytes, 9000u);
  EXPECT_EQ(room->headroom_bytes(), 100);
  // Pages of files do not count as used.
  v2_group("/a", "9000", "max", 8900, "anon 5\ninactive_file 600\nactive_file 200\nslab 9\n");
  room = group->tightest();
  ASSERT_TRUE(room);
  EXPECT_EQ(room->limit_bytes, 1000u);
  EXPECT_EQ(room->headroom_bytes(), 500);
  // Above its limit, which happens with a soft one.
  v2_group("/a/b", "1000", "300", 500);
  room = group->tightest();
  ASSERT_TRUE(room);
  EXPECT_EQ(room->headroom_bytes(), -200);
}

TEST_F(CgroupTest, NoLimitIsNoRoom) {
  self("0::/a\n", v2_mount);
  v2_group("/a", "max", "max", 8900);
  auto group = memory_cgroup::find(root_);
  ASSERT_TRUE(group);
  EXPECT_EQ(group->limit_bytes(), UINT64_MAX);
  EXPECT_FALSE(group->tightest());
  EXPECT_EQ(memory_room{}.headroom_bytes(), INT64_MAX);

  self("4:memory:/a\n", v1_mount);
  v1_group("/a", v1_none, v1_none, 77);
  group = memory_cgroup::find(root_);
  ASSERT_TRUE(group);
  EXPECT_EQ(group->version(), cgroup_version::v1);
  EXPECT_EQ(group->limit_bytes(), UINT64_MAX);
  EXPECT_FALSE(group->tightest());
}

TEST_F(CgroupTest, V1HasASoftLimitAndCountsTheGroupsBelow) {
  self("3:cpu,cpuacct:/x\n4:hugetlb,memory:/a\n0::/\n", std::string(v1_mount) + v2_mount);
  v1_group("", v1_none, v1_none, 50000);
  v1_group("/a", 4000, 3000, 3500,
           "inactive_file 1\nactive_file 1\ntotal_inactive_file 400\ntotal_active_file 300\n");
  const auto group = memory_cgroup::find(root_);
  ASSERT_TRUE(group);
  EXPECT_EQ(group->version(), cgroup_version::v1);
  EXPECT_EQ(group->directories().size(), 2u);
  const auto room = group->tightest();
  ASSERT_TRUE(room);
  EXPECT_EQ(room->limit_bytes, 3000u);
  EXPECT_EQ(room->usage_bytes, 3500u);
  EXPECT_EQ(room->file_bytes, 700u);
  EXPECT_EQ(room->headroom_bytes(), 200);
}

TEST_F(CgroupTest, InAContainerTheMountIsAGroupOfItsOwn) {
  // What is mounted is the container's group, seen from the host's root.
  self("4:memory:/docker/123/job\n",
       "35 31 0:32 /docker/123 /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n");
  v1_group("", 5000, v1_none, 1);
  v1_group("/job", 4000, v1_none, 1);
  auto group = memory_cgroup::find(root_);
  ASSERT_TRUE(group);
  ASSERT_EQ(group->directories().size(), 2u);
  EXPECT_EQ(group->limit_bytes(), 4000u);

  // A path that only the host knows, and one outside of the namespace: the mount is what is left.
  for (const char* path : {"/elsewhere/9", "/../../other"}) {
    self(std::string("4:memory:") + path + "\n", v1_mount);
    group = memory_cgroup::find(root_);
    ASSERT_TRUE(group) << path;
    EXPECT_EQ(group->limit_bytes(), 5000u) << path;
  }
}

TEST_F(CgroupTest, MountPointsMayHaveSpaces) {
  self("0::/\n", "41 31 0:38 / /sys/fs/c\\040group rw,relatime - cgroup2 cgroup2 rw\n");
  const std::string directory = "/sys/fs/c group";
  write(directory + "/memory.max", "1234\n");
  write(directory + "/memory.current", "1\n");
  const auto group = memory_cgroup::find(root_);
  ASSERT_TRUE(group);
  EXPECT_EQ(group->limit_bytes(), 1234u);
}

TEST_F(CgroupTest, ADeepTreeIsBounded) {
  std::string path;
  for (int i = 0; i < 40; ++i) {
    path += "/g";
    v2_group(path, "max", "max", 1);
  }
  self("0::" + path + "\n", v2_mount);
  const auto group = memory_cgroup::find(root_);
  ASSERT_TRUE(group);
  EXPECT_EQ(group->directories().size(), memory_cgroup::max_depth);
}

// A group that goes away, as one does when its job has ended, has no limit any more.
TEST_F(CgroupTest, AGroupThatIsGoneHasNoLimit) {
  self("0::/a\n", v2_mount);
  v2_group("/a", "1000", "max", 500);
  const auto group = memory_cgroup::find(root_);
  ASSERT_TRUE(group);
  fs::remove_all(root_ + "/sys");
  EXPECT_EQ(group->limit_bytes(), UINT64_MAX);
  EXPECT_FALSE(group->tightest());
}

TEST_F(CgroupTest, AnonymousMemoryOfTheProcess) {
  EXPECT_EQ(anonymous_bytes((root_ + "/proc/self/statm").c_str()), UINT64_MAX);
  write("/proc/self/statm", "1000 300 100 50 0 400 0\n");
  EXPECT_EQ(anonymous_bytes((root_ + "/proc/self/statm").c_str()),
            200u * static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE)));
  write("/proc/self/statm", "1000 300 301 50 0 400 0\n");
  EXPECT_EQ(anonymous_bytes((root_ + "/proc/self/statm").c_str()), 0u);
  // What is touched is counted, if only roughly.
  constexpr std::size_t more = 32u << 20;
  const std::uint64_t before = anonymous_bytes();
  void* p = ::mmap(nullptr, more, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(p, MAP_FAILED);
  std::memset(p, 1, more);
  EXPECT_GT(anonymous_bytes(), before + more / 2);
  ::munmap(p, more);
}

TEST_F(CgroupTest, OfThisProcess) {
  // Whatever this machine has, asking for it goes well and is consistent.
  const auto group = memory_cgroup::find();
  if (!group) GTEST_SKIP() << "no memory controller is mounted";
  ASSERT_FALSE(group->directories().empty());
  if (const auto room = group->tightest()) {
    EXPECT_GE(room->limit_bytes, group->limit_bytes());
    EXPECT_GT(room->usage_bytes, 0u);
  }
}

}  // namespace
}  // namespace forebay
