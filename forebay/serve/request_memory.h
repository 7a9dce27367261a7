// The memory that clients and their requests take while the server runs: task frames, connections,
// receive buffers, batches of replies, payload that waits. All of it lies in an arena of its own,
// so that none of it comes from the heap, and no client takes pages from the cache, or waits for
// the cache to give some up, in order to be served.
//
//     each client   a connection and the tasks it consists of, 8 KiB to     client_bytes each
//                   receive into, 32 KiB of replies, one request
//     requests      the tasks of more requests that have to wait            request_bytes_max
//     extra         larger receive buffers, more replies, waiting payload   extra_bytes_max
//
// The arena has room for all three at their limits. So who has been let in gets what he needs: a
// client when its connection has been made, a request when its share has been promised. It also
// means that write-back, whose tasks come from here too, finds memory however many requests wait
// for it. Extra memory may be refused at any time: who asks for it goes on with less.
//
// At a limit a client is turned away, a request waits until another one of its client has ended
// (and the client is not read from), and extra memory is done without. Should the arena be too
// fragmented for a block after all, the request that needs it fails with ENOMEM.
//
// Memory that has never been used costs nothing: the shares are limits, not sizes.
//
// Any thread. Locks: those of the general_cache and the arena.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <memory>

#include "forebay/base/stats.h"
#include "forebay/memory/arena_shrinker.h"
#include "forebay/memory/general_cache.h"
#include "forebay/ring/frame_memory.h"

namespace forebay {

struct request_memory_statistics {
  std::uint64_t capacity_bytes = 0;
  std::uint64_t free_bytes = 0;
  std::uint64_t request_bytes = 0;     // promised to requests under way
  std::uint64_t extra_bytes = 0;       // in use
  std::uint64_t request_refusals = 0;  // times there was no share left
  std::uint64_t extra_refusals = 0;    // times there was no extra memory
  std::uint64_t failures = 0;          // allocations that the arena could not serve
};

class request_memory : public frame_memory {
 public:
  static constexpr std::size_t client_bytes = 80u << 10;
  // What the tasks of a request take at most: of one that touches few pages, and of others.
  static constexpr std::size_t short_request_bytes = 8u << 10;
  static constexpr std::size_t long_request_bytes = 16u << 10;
  // Of a read or write that counts as short, the data.
  static constexpr std::size_t short_request_data_bytes = 12u << 10;

  // How much of what a client's requests may take is not its own, which one request has always.
  static constexpr std::size_t shared_of(std::size_t bytes) noexcept {
    return bytes - std::min(bytes, long_request_bytes);
  }

  struct options {
    unsigned max_clients = 1;
    std::size_t request_bytes_max = 16u << 20;
    std::size_t extra_bytes_max = 20u << 20;
    int numa_node = any_numa_node;  // where the memory is to lie
  };

  // Errors: as arena::create.
  static result<std::unique_ptr<request_memory>> create(
      const options& opts, memory_source& source = memory_source::system());

  // What the constructor needs. For tests, which put something of theirs before allocate().
  struct parts {
    std::unique_ptr<arena> memory;
    std::unique_ptr<general_cache> pieces;
  };
  static result<parts> make_parts(const options& opts, memory_source& source);
  request_memory(parts p, const options& opts) noexcept;

  // Everything must have been given back.
  virtual ~request_memory() = default;
  request_memory(const request_memory&) = delete;
  request_memory& operator=(const request_memory&) = delete;

  const options& limits() const noexcept { return options_; }

  // Pieces come from a general_cache, what is too large for that is a block of frames. 64-byte
  // aligned.
  void* allocate(std::size_t bytes) noexcept override;
  void free(void* memory, std::size_t bytes) noexcept override;

  // The same out of the extra share.
  void* allocate_extra(std::size_t bytes) noexcept;
  void free_extra(void* memory, std::size_t bytes) noexcept;

  // Promises so much to requests beyond a client's first one; false if there is no share left.
  bool take_request_share(std::size_t bytes) noexcept;
  void return_request_share(std::size_t bytes) noexcept;

  request_memory_statistics statistics() const noexcept;

  // Gives memory that was needed once back to the operating system.
  shrinker& reclaim() noexcept { return reclaim_; }

 private:
  const options options_;
  std::unique_ptr<arena> arena_;
  std::unique_ptr<general_cache> pieces_;
  arena_shrinker reclaim_{"requests", *arena_, *pieces_};
  std::atomic<std::size_t> promised_{0};
  std::atomic<std::size_t> extra_{0};
  counter request_refusals_;
  counter extra_refusals_;
  counter failures_;
};

}  // namespace forebay
