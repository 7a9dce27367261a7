#include "forebay/os/pressure.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>

#include "forebay/os/cgroup.h"
#include "forebay/os/clock.h"

namespace forebay {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t ms = 1'000'000;

std::string read_file(const fs::path& p) {
  std::ostringstream out;
  out << std::ifstream(p).rdbuf();
  return out.str();
}

class PressureTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "forebay-pressure-XXXXXX").string();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    directory_ = name;
  }
  void TearDown() override { fs::remove_all(directory_); }

  std::string write(const std::string& name, const std::string& text) {
    std::ofstream(directory_ / name) << text;
    return directory_ / name;
  }
  void events(std::uint64_t high, std::uint64_t max, std::uint64_t oom = 0) {
    write("memory.events", "low 9\nhigh " + std::to_string(high) + "\nmax " + std::to_string(max) +
                               "\noom " + std::to_string(oom) + "\noom_kill 0\n");
  }

  fs::path directory_;
};

TEST_F(PressureTest, ATriggerIsWrittenAsTheKernelReadsIt) {
  const std::string file = write("memory", "");
  ASSERT_TRUE(pressure_source::psi(file, {}, memory_pressure::moderate));
  EXPECT_EQ(read_file(file), std::string("some 150000 1000000\0", 20));
  ASSERT_TRUE(pressure_source::psi(file, {.full = true, .stall_us = 7, .window_us = 500'000},
                                   memory_pressure::critical));
  EXPECT_EQ(read_file(file).substr(0, 14), std::string("full 7 500000\0", 14));
}

TEST_F(PressureTest, WithoutTheFilesThereIsAnError) {
  const std::string none = directory_ / "none";
  EXPECT_EQ(pressure_source::psi(none, {}, memory_pressure::moderate).error(),
            std::errc::no_such_file_or_directory);
  EXPECT_EQ(pressure_source::cgroup_v1(none, memory_pressure::moderate).error(),
            std::errc::no_such_file_or_directory);
  EXPECT_EQ(pressure_source::cgroup_v2(none).error(), std::errc::no_such_file_or_directory);
  write("memory.pressure_level", "");
  EXPECT_EQ(pressure_source::cgroup_v1(directory_, memory_pressure::moderate).error(),
            std::errc::no_such_file_or_directory);
  EXPECT_EQ(pressure_source::cgroup_v1(directory_, memory_pressure::none).error(),
            std::errc::invalid_argument);
}

TEST_F(PressureTest, OfTheMachine) {
  const std::string file = "/proc/pressure/memory";
  const auto s = pressure_source::psi(file, {}, memory_pressure::moderate);
  if (!s && s.error() != std::errc::invalid_argument) {
    GTEST_SKIP() << "no PSI: " << s.error().message();
  }
  ASSERT_TRUE(s) << s.error().message();
  EXPECT_EQ(s->kind(), pressure_kind::psi);
  EXPECT_EQ(s->path(), file);
  // What no window can be: more stall than window, and no window at all.
  for (const psi_trigger wrong : {psi_trigger{.stall_us = 3'000'000, .window_us = 2'000'000},
                                  psi_trigger{.stall_us = 1, .window_us = 0}}) {
    EXPECT_EQ(pressure_source::psi(file, wrong, memory_pressure::moderate).error(),
              std::errc::invalid_argument);
  }
  // Windows of whole 2 s are for everybody, so those are taken as they are.
  const auto wide = pressure_source::psi(file, {.stall_us = 100'000, .window_us = 2'000'000},
                                         memory_pressure::moderate);
  ASSERT_TRUE(wide) << wide.error().message();
  EXPECT_FALSE(wide->widened());
}

TEST_F(PressureTest, V1AsksForAnEventOfTheGroupItself) {
  write("memory.pressure_level", "");
  const std::string control = write("cgroup.event_control", "");
  auto sources = pressure_sources::create();
  ASSERT_TRUE(sources);
  for (const memory_pressure level : {memory_pressure::moderate, memory_pressure::critical}) {
    auto s = pressure_source::cgroup_v1(directory_, level);
    ASSERT_TRUE(s) << s.error().message();
    std::istringstream asked(read_file(control));
    int event = -1;
    int file = -1;
    std::string what;
    asked >> event >> file >> what;
    EXPECT_EQ(event, s->fd());
    EXPECT_GE(file, 0);
    EXPECT_EQ(what, level == memory_pressure::critical ? "critical,local" : "medium,local");
    sources->add(std::move(*s));
  }
  EXPECT_EQ(sources->wait(0).worst(), memory_pressure::none);
  // The kernel's part.
  signal_event_fd(sources->all()[0].fd());
  signal_event_fd(sources->all()[0].fd());
  auto found = sources->wait(60'000 * ms);
  EXPECT_EQ(found.cgroup, memory_pressure::moderate);
  EXPECT_EQ(found.psi, memory_pressure::none);
  EXPECT_EQ(sources->wait(0).worst(), memory_pressure::none) << "told once";
  signal_event_fd(sources->all()[0].fd());
  signal_event_fd(sources->all()[1].fd());
  EXPECT_EQ(sources->wait(60'000 * ms).cgroup, memory_pressure::critical) << "the worse one";
}

TEST_F(PressureTest, V2CountsWhatLimitsWereMet) {
  events(5, 5);
  auto sources = pressure_sources::create();
  ASSERT_TRUE(sources);
  auto s = pressure_source::cgroup_v2(directory_);
  ASSERT_TRUE(s) << s.error().message();
  EXPECT_EQ(s->path(), directory_ / "memory.events");
  sources->add(std::move(*s));
  EXPECT_EQ(sources->wait(0).worst(), memory_pressure::none) << "what was before does not count";
  events(6, 5);
  EXPECT_EQ(sources->wait(0).cgroup, memory_pressure::moderate);
  EXPECT_EQ(sources->wait(0).worst(), memory_pressure::none);
  events(7, 6);
  EXPECT_EQ(sources->wait(0).cgroup, memory_pressure::critical);
  events(7, 6, 1);
  EXPECT_EQ(sources->wait(0).cgroup, memory_pressure::critical);
  write("memory.events", "nonsense\n\nhigh\nmax x\n");
  sources->wait(0);
  EXPECT_EQ(sources->wait(0).worst(), memory_pressure::none);
}

TEST_F(PressureTest, V2PrefersWhatIsTheGroupsOwn) {
  events(1, 1);
  write("memory.events.local", "high 0\nmax 0\n");
  const auto s = pressure_source::cgroup_v2(directory_);
  ASSERT_TRUE(s);
  EXPECT_EQ(s->path(), directory_ / "memory.events.local");
}

TEST_F(PressureTest, WaitEndsByWakeOrTimeout) {
  auto sources = pressure_sources::create();
  ASSERT_TRUE(sources);
  sources->wake();
  const std::uint64_t start = monotonic_clock::now_ns();
  EXPECT_EQ(sources->wait(60'000 * ms).worst(), memory_pressure::none) << "woken before";
  {
    const std::jthread waker([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
      sources->wake();
    });
    sources->wait(60'000 * ms);
  }
  EXPECT_LT(monotonic_clock::now_ns() - start, 50'000 * ms);
  const std::uint64_t again = monotonic_clock::now_ns();
  sources->wait(20 * ms);
  EXPECT_GE(monotonic_clock::now_ns() - again, 19 * ms);
}

// A v1 group of its own below that of this process, with a child in it that holds memory.
class RealGroup {
 public:
  static constexpr std::size_t held_bytes = 32u << 20;

  bool make() {
    const auto own = memory_cgroup::find();
    if (!own || own->version() != cgroup_version::v1) return false;
    path_ = own->directories().back() + "/forebay-test-" + std::to_string(::getpid());
    if (::mkdir(path_.c_str(), 0755) != 0) return false;
    if (::pipe2(ready_, O_CLOEXEC) != 0) return false;
    child_ = ::fork();
    if (child_ == 0) hold();
    char byte = 0;
    return child_ > 0 && ::read(ready_[0], &byte, 1) == 1 && byte == 'y';
  }
  ~RealGroup() {
    if (child_ > 0) {
      ::kill(child_, SIGKILL);
      ::waitpid(child_, nullptr, 0);
    }
    for (int i = 0; i < 100 && !path_.empty() && ::rmdir(path_.c_str()) != 0; ++i) ::usleep(10'000);
    for (const int fd : ready_) {
      if (fd >= 0) ::close(fd);
    }
  }
  const std::string& path() const { return path_; }

 private:
  [[noreturn]] void hold() {
    const int procs = ::open((path_ + "/cgroup.procs").c_str(), O_WRONLY);
    void* p =
        ::mmap(nullptr, held_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    const bool good =
        procs >= 0 && ::write(procs, "0", 1) == 1 && p != MAP_FAILED && ::mlock(p, held_bytes) == 0;
    // Touched as well: under the address sanitizer mlock does nothing.
    if (good) std::memset(p, 1, held_bytes);
    static_cast<void>(!::write(ready_[1], good ? "y" : "n", 1));
    ::alarm(120);
    for (;;) ::pause();
  }

  std::string path_;
  int ready_[2] = {-1, -1};
  pid_t child_ = -1;
};

TEST_F(PressureTest, ARealGroupV1TellsWhenItsLimitCannotBeKept) {
  RealGroup group;
  if (!group.make()) GTEST_SKIP() << "no v1 memory group can be made, or no memory be locked";
  auto sources = pressure_sources::create();
  ASSERT_TRUE(sources);
  auto s = pressure_source::cgroup_v1(group.path(), memory_pressure::critical);
  ASSERT_TRUE(s) << s.error().message();
  sources->add(std::move(*s));
  EXPECT_EQ(sources->wait(0).worst(), memory_pressure::none);
  {
    std::ofstream limit(group.path() + "/memory.limit_in_bytes");
    limit << RealGroup::held_bytes / 2 << std::flush;
    if (limit.good()) GTEST_SKIP() << "the memory was swapped out";
  }
  EXPECT_EQ(sources->wait(60'000 * ms).cgroup, memory_pressure::critical);
}

}  // namespace
}  // namespace forebay
