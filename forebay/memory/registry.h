// What a process keeps its memory in: slab caches, buffer pools and free lists of frames, by name.
//
//    memory_registry ──> slab_cache "buffer_head" ──> buffer_pool "socket" ──> …
//
// Whoever hands out memory derives from registered_memory, enrolls when it is ready and withdraws
// before it goes; whoever shows it (a live table, a report, the pressure monitor) takes a snapshot.
//
// A name stands for one thing in a registry: to take a name a second time is EEXIST. One process
// may run several page caches, each of which has its "buffer_head": such a thing asks for a number
// behind its name (if_taken::number) and is "buffer_head:2" then. There is one registry for the
// process, and tests may have their own.
//
// Locks: lock_ guards the list and is held while a snapshot reads statistics, so that nothing goes
// away under the reader: withdraw() waits for it. Lock order: lock_ before every lock of the
// registered things; enroll() and withdraw() are called with none of those held. Any thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "forebay/base/list.h"
#include "forebay/base/result.h"
#include "forebay/os/mutex.h"

namespace forebay {

enum class memory_kind : std::uint8_t {
  slab,    // equal objects in slabs of frames
  pool,    // buffers that are all made at the start, or to a limit
  frames,  // page frames
};

std::string_view to_string(memory_kind kind) noexcept;

// Numbers are exact when no thread is inside, and a moment's approximation otherwise. What a kind
// of memory does not have is 0.
struct memory_statistics {
  std::string name{};
  memory_kind kind = memory_kind::slab;
  std::uint64_t object_bytes = 0;      // as it was asked for
  std::uint64_t stride_bytes = 0;      // from one object to the next, as it is
  std::uint64_t objects_per_slab = 0;  // of a full one
  std::uint64_t slab_bytes = 0;        // of one slab
  std::uint64_t active = 0;            // objects in use
  std::uint64_t total = 0;             // objects there are
  std::uint64_t cached = 0;            // free objects that wait in CPU caches
  std::uint64_t slabs = 0;
  std::uint64_t partial_slabs = 0;  // with both free objects and others; cached ones are others
  std::uint64_t bytes = 0;          // of memory altogether
  std::uint64_t allocations = 0;
  std::uint64_t frees = 0;
  std::uint64_t cpu_hits = 0;        // allocations that needed nothing but the CPU's cache
  std::uint64_t failures = 0;        // allocations that were refused
  std::uint64_t high_watermark = 0;  // the most objects that were out at once; see each kind
  bool per_cpu = false;              // the CPU caches work by restartable sequences
  bool debug = false;                // the debug mode is on
};

class memory_registry;

class registered_memory {
 public:
  registered_memory(const registered_memory&) = delete;
  registered_memory& operator=(const registered_memory&) = delete;

  // It must have withdrawn, in the destructor of the class that overrides report().
  virtual ~registered_memory();

  // As enrolled: with its number, if it has one.
  const std::string& name() const noexcept { return name_; }

  // Called by a snapshot under the registry's lock; any other thread may call it as well.
  virtual memory_statistics report() const = 0;

 protected:
  enum class if_taken : std::uint8_t { refuse, number };

  explicit registered_memory(std::string name) noexcept : name_(std::move(name)) {}
  // From now on snapshots show it. To be called when report() can be. Errors: EEXIST; EINVAL for
  // an empty name.
  result<> enroll(memory_registry& registry, if_taken taken = if_taken::refuse);
  // When this returns, nobody is in report() and nobody will be. Nothing if it is not enrolled.
  void withdraw() noexcept;

 private:
  friend class memory_registry;
  std::string name_;  // does not change once enrolled
  memory_registry* registry_ = nullptr;
  list_node link_;  // guarded by the registry's lock
};

// What a snapshot is sorted by: names upwards, everything else from the largest down.
enum class memory_order_by : std::uint8_t {
  name,
  active,
  total,
  cached,
  object_bytes,
  slabs,
  bytes,
  allocations,
  failures,
  high_watermark,
};

class memory_registry {
 public:
  memory_registry() noexcept = default;
  // Everything must have withdrawn.
  ~memory_registry();
  memory_registry(const memory_registry&) = delete;
  memory_registry& operator=(const memory_registry&) = delete;

  // The one of this process; it is never destroyed.
  static memory_registry& process() noexcept;

  // Statistics of all that is enrolled. Equal ones stay in order of their names.
  std::vector<memory_statistics> snapshot(memory_order_by order = memory_order_by::name) const;

  // The name of what is enrolled at this address (as registered_memory*), which may be any; empty
  // if there is nothing. For reports.
  std::string name_of(const void* address) const;

 private:
  friend class registered_memory;

  bool taken(std::string_view name) noexcept FOREBAY_REQUIRES(lock_);

  mutable mutex lock_;
  mutable intrusive_list<registered_memory, &registered_memory::link_> list_
      FOREBAY_GUARDED_BY(lock_);
};

// Of the process's registry.
inline std::vector<memory_statistics> memory_snapshot(
    memory_order_by order = memory_order_by::name) {
  return memory_registry::process().snapshot(order);
}

}  // namespace forebay
