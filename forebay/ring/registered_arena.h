// An arena's memory registered with one loop's io_uring, as a device of the arena.
//
//    any thread   forget(chunk) --> bit set --> loop.post()        the arena wants the chunk back
//    the loop     bit taken --> table entry emptied --> arena::device_forgot()
//
// A registration keeps memory in use whatever else is done to it, and only the ring's own thread
// may change it; so what the arena asks is noted and done by the loop. When a chunk has come back
// it is registered again; until then, and where the kernel refuses, transfers go the ordinary way.
//
// forget() and remember() may be called from any thread (the arena does); all else belongs to the
// loop's thread. Bits are set and taken atomically; there is no lock.
#pragma once

#include <atomic>
#include <memory>

#include "forebay/ring/loop.h"

namespace forebay {

class registered_arena final : public arena_device {
 public:
  // Registers with the loop's queue pair what the arena has, and adds itself to the arena. Called
  // by the loop's thread, before run() or from inside. Errors: as
  // uring_queue_pair::register_arena(), ENOMEM.
  static result<std::unique_ptr<registered_arena>> create(loop& on, arena& memory);

  // close() must have been called, and the loop must be gone or never run again.
  ~registered_arena() override;

  // Leaves the arena, with an answer to everything it asked. By the loop's thread, when the loop
  // does not run any more.
  void close() noexcept;

  // Why not all of the arena's memory is registered: errc::too_large if it is more than the kernel
  // has entries for, ENOMEM if the kernel refused, no error if all is.
  std::error_code shortfall() const noexcept { return shortfall_; }

  void forget(std::uint32_t chunk) noexcept override;
  void remember(std::uint32_t chunk) noexcept override;

 private:
  struct work : completion {
    registered_arena* self = nullptr;
  };
  using bits = std::unique_ptr<std::atomic<std::uint64_t>[]>;

  registered_arena(loop& on, arena& memory, std::uint32_t chunks, bits forget,
                   bits remember) noexcept;

  void note(bits& in, std::uint32_t chunk) noexcept;
  void do_what_was_asked() noexcept;

  loop& loop_;
  arena& memory_;
  const std::uint32_t chunks_;  // that can be registered
  bits to_forget_;
  bits to_remember_;
  std::atomic<bool> posted_{false};  // work_ is on its way to the loop
  work work_;
  std::error_code shortfall_;
  bool closed_ = true;  // not in the arena's list of devices
};

}  // namespace forebay
