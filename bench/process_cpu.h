// The CPU time of this process, and of a running one, its threads and its descendants, the latter
// in nanoseconds.
//
// Taken from the first field of /proc/PID/task/TID/schedstat, which the scheduler keeps in
// nanoseconds; a thread that runs at the moment of reading is behind by at most one tick. A thread
// that ends between two readings takes its time with it.
#pragma once

#include <sys/resource.h>
#include <sys/types.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <vector>

namespace forebay::bench {

// Microseconds of CPU that this process has had, the kernel's work for it included.
inline double own_cpu_us() {
  rusage u{};
  ::getrusage(RUSAGE_SELF, &u);
  const auto us = [](const timeval& t) {
    return 1e6 * static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec);
  };
  return us(u.ru_utime) + us(u.ru_stime);
}

class process_cpu {
 public:
  // Nanoseconds by thread.
  using reading = std::map<std::string, std::uint64_t>;

  explicit process_cpu(pid_t root) : root_(root) {}

  // Empty if there is no such process or the kernel keeps no such statistics.
  reading read() const {
    reading sum;
    for (const pid_t pid : family()) {
      std::error_code error;
      const std::filesystem::path tasks = "/proc/" + std::to_string(pid) + "/task";
      for (const auto& task : std::filesystem::directory_iterator(tasks, error)) {
        std::ifstream file(task.path() / "schedstat");
        std::uint64_t ns = 0;
        if (file >> ns) sum[task.path().filename()] = ns;
      }
    }
    return sum;
  }

  // What was used from `before` to `after`; a thread that is new counts in full.
  static std::uint64_t between(const reading& before, const reading& after) {
    std::uint64_t ns = 0;
    for (const auto& [tid, end] : after) {
      const auto start = before.find(tid);
      ns += end - (start == before.end() ? 0 : start->second);
    }
    return ns;
  }

 private:
  // The process and all its descendants at this moment (a server may fork for each client).
  std::vector<pid_t> family() const {
    std::multimap<pid_t, pid_t> children;
    std::error_code error;
    for (const auto& entry : std::filesystem::directory_iterator("/proc", error)) {
      const std::string name = entry.path().filename();
      if (name.find_first_not_of("0123456789") != std::string::npos) continue;
      std::ifstream file(entry.path() / "stat");
      std::string line;
      std::getline(file, line);
      const auto command_end = line.rfind(") ");  // the command may contain anything
      if (command_end == std::string::npos) continue;
      const auto parent =
          std::strtol(line.c_str() + command_end + 4, nullptr, 10);  // after the state
      children.emplace(static_cast<pid_t>(parent), std::stoi(name));
    }
    std::vector<pid_t> all{root_};
    for (std::size_t i = 0; i < all.size(); ++i) {
      const auto [first, last] = children.equal_range(all[i]);
      for (auto it = first; it != last; ++it) all.push_back(it->second);
    }
    return all;
  }

  pid_t root_;
};

}  // namespace forebay::bench
