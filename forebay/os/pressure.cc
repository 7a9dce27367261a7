#include "forebay/os/pressure.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdio>
#include <string_view>
#include <utility>

namespace forebay {
namespace {

constexpr std::uint32_t unprivileged_window_us = 2'000'000;

result<> write_text(int fd, std::string_view text) noexcept {
  for (;;) {
    if (::write(fd, text.data(), text.size()) >= 0) return {};
    if (errno != EINTR) return fail_errno();
  }
}

result<unique_fd> open_file(const std::string& path, int flags) noexcept {
  unique_fd fd(::open(path.c_str(), flags | O_CLOEXEC));
  if (!fd) return fail_errno();
  return fd;
}

// A descriptor takes one trigger in its life, so each attempt opens the file again.
result<unique_fd> open_trigger(const std::string& path, const psi_trigger& t) noexcept {
  auto fd = open_file(path, O_RDWR | O_NONBLOCK);
  if (!fd) return fd;
  std::array<char, 64> text{};
  const int n =
      std::snprintf(text.data(), text.size(), "%s %u %u", t.full ? "full" : "some",
                    static_cast<unsigned>(t.stall_us), static_cast<unsigned>(t.window_us));
  // With the closing zero, as the kernel asks.
  if (auto r = write_text(fd->get(), {text.data(), static_cast<std::size_t>(n) + 1}); !r) {
    return fail(r.error());
  }
  return fd;
}

}  // namespace

const char* to_string(memory_pressure p) noexcept {
  switch (p) {
    case memory_pressure::none:
      return "none";
    case memory_pressure::moderate:
      return "moderate";
    case memory_pressure::critical:
      return "critical";
  }
  return "unknown";
}

const char* to_string(pressure_kind k) noexcept {
  switch (k) {
    case pressure_kind::psi:
      return "PSI";
    case pressure_kind::cgroup_v1:
      return "cgroup v1";
    case pressure_kind::cgroup_v2:
      return "cgroup v2";
  }
  return "unknown";
}

result<pressure_source> pressure_source::psi(const std::string& path, psi_trigger trigger,
                                             memory_pressure meaning) {
  auto fd = open_trigger(path, trigger);
  bool widened = false;
  if (!fd && fd.error() == std::errc::invalid_argument && trigger.window_us != 0 &&
      trigger.window_us % unprivileged_window_us != 0) {
    psi_trigger wide = trigger;
    wide.window_us = (trigger.window_us / unprivileged_window_us + 1) * unprivileged_window_us;
    wide.stall_us = static_cast<std::uint32_t>(std::uint64_t{trigger.stall_us} * wide.window_us /
                                               trigger.window_us);
    fd = open_trigger(path, wide);
    widened = true;
  }
  if (!fd) return fail(fd.error());
  pressure_source s(pressure_kind::psi, path, std::move(*fd), meaning);
  s.widened_ = widened;
  return s;
}

result<pressure_source> pressure_source::cgroup_v1(const std::string& directory,
                                                   memory_pressure meaning) {
  if (meaning == memory_pressure::none) return fail(EINVAL);
  const std::string path = directory + "/memory.pressure_level";
  auto level = open_file(path, O_RDONLY);
  if (!level) return fail(level.error());
  auto control = open_file(directory + "/cgroup.event_control", O_WRONLY);
  if (!control) return fail(control.error());
  unique_fd event(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!event) return fail_errno();
  // "local": what presses on a group below has a limit of its own to keep.
  const std::string request = std::to_string(event.get()) + " " + std::to_string(level->get()) +
                              (meaning == memory_pressure::critical ? " critical" : " medium") +
                              ",local";
  if (auto r = write_text(control->get(), request); !r) return fail(r.error());
  // The kernel holds the group; the two files have done their part.
  return pressure_source(pressure_kind::cgroup_v1, path, std::move(event), meaning);
}

result<pressure_source> pressure_source::cgroup_v2(const std::string& directory) {
  // The local file does not count what the groups below met; it is there since Linux 5.2.
  std::string path = directory + "/memory.events.local";
  auto fd = open_file(path, O_RDONLY);
  if (!fd) {
    path = directory + "/memory.events";
    fd = open_file(path, O_RDONLY);
  }
  if (!fd) return fail(fd.error());
  pressure_source s(pressure_kind::cgroup_v2, std::move(path), std::move(*fd),
                    memory_pressure::critical);
  if (!s.read_counts(s.seen_)) return fail(EIO);
  return s;
}

short pressure_source::interest() const noexcept {
  return kind_ == pressure_kind::cgroup_v1 ? POLLIN : POLLPRI;
}

memory_pressure pressure_source::take(short polled) noexcept {
  switch (kind_) {
    case pressure_kind::psi:
      if ((polled & POLLPRI) != 0) return meaning_;
      // Its group has gone. Ready for ever, so it is not asked again.
      if ((polled & (POLLERR | POLLNVAL)) != 0) fd_.reset();
      return memory_pressure::none;
    case pressure_kind::cgroup_v1: {
      if ((polled & POLLIN) == 0) return memory_pressure::none;
      std::uint64_t count = 0;
      if (::read(fd_.get(), &count, sizeof count) != sizeof count) return memory_pressure::none;
      return meaning_;
    }
    case pressure_kind::cgroup_v2:
      return take_counts();
  }
  return memory_pressure::none;
}

// Reading the file is also what makes the next event wake the poll again.
memory_pressure pressure_source::take_counts() noexcept {
  if (!fd_) return memory_pressure::none;
  event_counts now;
  if (!read_counts(now)) {
    fd_.reset();  // its group has gone
    return memory_pressure::none;
  }
  const event_counts before = std::exchange(seen_, now);
  if (now.max != before.max) return memory_pressure::critical;
  if (now.high != before.high) return memory_pressure::moderate;
  return memory_pressure::none;
}

bool pressure_source::read_counts(event_counts& counts) noexcept {
  std::array<char, 512> text{};
  const ssize_t n = ::pread(fd_.get(), text.data(), text.size(), 0);
  if (n < 0) return false;
  std::string_view rest(text.data(), static_cast<std::size_t>(n));
  while (!rest.empty()) {
    const std::string_view line = rest.substr(0, rest.find('\n'));
    rest.remove_prefix(std::min(rest.size(), line.size() + 1));
    const std::size_t space = line.find(' ');
    if (space == std::string_view::npos) continue;
    const std::string_view key = line.substr(0, space);
    std::uint64_t value = 0;
    std::from_chars(line.data() + space + 1, line.data() + line.size(), value);
    if (key == "high") counts.high = value;
    if (key == "max" || key == "oom" || key == "oom_kill") counts.max += value;
  }
  return true;
}

result<pressure_sources> pressure_sources::create() {
  unique_fd fd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!fd) return fail_errno();
  return pressure_sources(std::move(fd));
}

pressure_sources::findings pressure_sources::wait(std::uint64_t timeout_ns) noexcept {
  constexpr std::size_t polled_max = 64;
  std::array<pollfd, polled_max> fds{};
  const std::size_t count = std::min(sources_.size(), polled_max - 1);
  fds[0] = {.fd = wakeup_.get(), .events = POLLIN, .revents = 0};
  for (std::size_t i = 0; i < count; ++i) {
    // A negative descriptor is passed over.
    fds[i + 1] = {.fd = sources_[i].fd(), .events = sources_[i].interest(), .revents = 0};
  }
  const auto timeout_ms = static_cast<int>(std::min<std::uint64_t>(timeout_ns / 1'000'000, 60'000));
  if (::poll(fds.data(), static_cast<nfds_t>(count + 1), timeout_ms) < 0) return {};
  if ((fds[0].revents & POLLIN) != 0) {
    std::uint64_t ignored = 0;
    static_cast<void>(::read(wakeup_.get(), &ignored, sizeof ignored));
  }
  findings found;
  for (std::size_t i = 0; i < count; ++i) {
    const memory_pressure p = sources_[i].take(fds[i + 1].revents);
    memory_pressure& worst = sources_[i].kind() == pressure_kind::psi ? found.psi : found.cgroup;
    worst = std::max(worst, p);
  }
  return found;
}

}  // namespace forebay
