// Takes from this process what it will not need any more, so that who takes it over has little:
//
//   1. confine()   before threads are started, when everything is open: no new privileges by
//                  execve(2), and Landlock: of all files only those that were allowed can be
//                  opened, no TCP port can be bound or connected to, no signal be sent to others.
//   2. close()     when all threads run: a seccomp filter for all of them, with the system calls
//                  that a running server makes and no other. No programs, no threads, no sockets
//                  but datagrams between processes (for sd_notify(3)), no executable memory,
//                  nothing opened for writing, no new io_uring.
//
// What is open already stays usable. A call that is not on the list ends the process by SIGSYS,
// after a line on standard error that names it. What Landlock refuses is an error of the call
// (EACCES, or EPERM for a signal), and so is an operation of an io_uring that uring.h does not
// know.
//
// Where the kernel lacks a part (Landlock before 5.13, or switched off) the others are used and
// remarks() says so. With a sanitizer, whose runtime makes other calls, there is no filter.
//
// Not thread-safe: one thread makes it and calls everything. It cannot be undone.
#pragma once

#include <string>
#include <vector>

#include "forebay/base/result.h"

namespace forebay {

class sandbox {
 public:
  // Before confine(): what may be opened later on. Each a file, or a directory with all below it;
  // what is not there at confine() is passed over.
  void allow_read(std::string path) { readable_.push_back(std::move(path)); }
  void allow_write(std::string path) { writable_.push_back(std::move(path)); }  // and read; no new
  // From this directory, and those below it, files and sockets may be removed.
  void allow_remove(std::string directory) { removable_.push_back(std::move(directory)); }

  // What the library itself opens while it runs: the process's and the control groups' state.
  void allow_own_state();

  // Errors: errno of prctl(2), of landlock_restrict_self(2).
  result<> confine();
  // After confine(). Errors: ENOMEM, EINVAL for a kernel without seccomp filters.
  result<> close();

  // What could not be had, in words for the user.
  const std::vector<std::string>& remarks() const noexcept { return remarks_; }

 private:
  result<> restrict_files(int abi);

  std::vector<std::string> readable_;
  std::vector<std::string> writable_;
  std::vector<std::string> removable_;
  std::vector<std::string> remarks_;
};

}  // namespace forebay
