// A child process for tests that need somebody at the other end who can die.
#pragma once

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <utility>

namespace forebay {

// Killed and waited for on destruction.
class test_process {
 public:
  // The child runs `body` and exits with what it returns. Only from a process with one thread, and
  // `body` neither throws nor uses the test framework. After 60 s the child ends by itself.
  template <typename Body>
  explicit test_process(Body body) noexcept : pid_(::fork()) {
    if (pid_ != 0) return;
    ::alarm(60);
    ::_exit(body());
  }
  test_process(const test_process&) = delete;
  test_process& operator=(const test_process&) = delete;
  ~test_process() {
    if (pid_ > 0) kill_and_wait();
  }

  int pid() const noexcept { return pid_; }

  // Waits for its end: its exit status, or the negative number of the signal that ended it.
  int wait() noexcept {
    int status = 0;
    while (::waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
    }
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }

  int kill_and_wait() noexcept {
    ::kill(pid_, SIGKILL);
    return wait();
  }

  // Ends it and leaves it a zombie.
  void kill() noexcept { ::kill(pid_, SIGKILL); }

 private:
  int pid_;
};

}  // namespace forebay
