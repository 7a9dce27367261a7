#include "forebay/os/rseq.h"

#include <linux/membarrier.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>

#include "forebay/base/assert.h"

namespace forebay {
namespace {

long membarrier(int command) noexcept { return ::syscall(SYS_membarrier, command, 0, 0); }

bool prepare() noexcept {
#if FOREBAY_HAVE_RSEQ
  // Numbers from 2^31 say that the registration failed, as it does under valgrind.
  if (__rseq_size == 0 || cpu_stack::cpu() >= 0x8000'0000u) return false;
  return membarrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_RSEQ) == 0;
#else
  return false;
#endif
}

}  // namespace

bool rseq_usable() noexcept {
  static const bool usable = prepare();
  return usable;
}

void rseq_fence() noexcept {
  // The kernel may be short of memory for a moment. Nothing else can fail once registered, unless a
  // filter of system calls was put up since: then nobody could say that a sequence has ended.
  while (membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED_RSEQ) != 0) FOREBAY_ASSERT(errno == ENOMEM);
}

}  // namespace forebay
