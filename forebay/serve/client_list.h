// The clients of an export that are served at present, and what each of them has asked for.
//
//   connection, vhost_device ── enter(), leave() ──> client_list <── report() ── statistics_of()
//            └─ count(): numbers of its own, without the lock
//
// It is a list with a lock, and not a question to each loop: who asks may be on one of the loops
// himself, and a loop that is busy must not hold up what is told of it. lock_ is held to link an
// entry, to unlink it, and while report() copies the numbers; nobody waits for anything under it or
// takes another lock, so that it may be taken on any thread and inside of any lock.
//
// lock_ guards the list and what of an entry is set by enter(); the numbers are atomics.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>

#include "forebay/base/list.h"
#include "forebay/base/stats.h"
#include "forebay/os/mutex.h"
#include "forebay/serve/nbd_protocol.h"

namespace forebay {

// By which protocol a client has come.
enum class client_door : std::uint8_t { nbd, vhost_user };

// What is told of a client.
struct client_report {
  static constexpr std::size_t peer_bytes = 80;

  std::uint64_t id = 0;                   // no other client of this process has it
  std::array<char, peer_bytes> peer{};    // as peer_identity() has it, with its zero
  const std::string* exported = nullptr;  // the export's name
  client_door door = client_door::nbd;
  std::uint64_t since_ns = 0;  // by the monotonic clock
  std::uint64_t requests = 0;  // that were answered
  std::uint64_t read_bytes = 0;
  std::uint64_t written_bytes = 0;
  std::uint64_t in_flight = 0;  // requests that were not answered at once, and not yet

  // By which clients are compared: what a request costs and what its bytes do is about the same at
  // 4 KiB.
  std::uint64_t activity() const noexcept { return requests + (read_bytes + written_bytes) / 4096; }
};

// The most active clients, most active first, and the sum of the others.
struct client_reports {
  static constexpr std::size_t most = 16;

  std::array<client_report, most> first;
  std::size_t count = 0;  // of them
  std::uint64_t others = 0;
  client_report sum;  // of the others' numbers

  void add(const client_report& r) noexcept;
};

class client_list;

// A client's place in the list, which it leaves by leave() or with its end.
class client_entry {
 public:
  client_entry() noexcept = default;
  ~client_entry() { leave(); }
  client_entry(const client_entry&) = delete;
  client_entry& operator=(const client_entry&) = delete;

  // From now on it is told of, with its numbers at zero; it is in no list. `in` lives longer.
  void enter(client_list& in, client_door door, int socket) noexcept;
  void leave() noexcept;

  // A request has been answered, if with success so many bytes of it; by one and the same thread.
  void count(nbd::command what, std::uint64_t bytes) noexcept {
    bump(requests_, 1);
    if (what == nbd::command::read) bump(read_bytes_, bytes);
    if (what == nbd::command::write) bump(written_bytes_, bytes);
  }
  // The same of several, by any thread of those that do not call count().
  void count_all(std::uint64_t requests, std::uint64_t read, std::uint64_t written) noexcept {
    add_to(requests_, requests);
    if (read != 0) add_to(read_bytes_, read);
    if (written != 0) add_to(written_bytes_, written);
  }

  // A request is worked on, and is no more. Any thread.
  void began() noexcept { add_to(in_flight_); }
  void ended() noexcept { add_to(in_flight_, UINT64_MAX); }

  list_node link;  // of the list

 private:
  friend class client_list;

  static void bump(std::atomic<std::uint64_t>& of, std::uint64_t n) noexcept {
    // relaxed: a statistic, it orders nothing. Nobody else writes this word.
    of.store(of.load(std::memory_order_relaxed) + n, std::memory_order_relaxed);
  }

  client_list* list_ = nullptr;
  client_report fixed_;  // what does not change
  std::atomic<std::uint64_t> requests_{0};
  std::atomic<std::uint64_t> read_bytes_{0};
  std::atomic<std::uint64_t> written_bytes_{0};
  std::atomic<std::uint64_t> in_flight_{0};
};

// Any thread.
class client_list {
 public:
  client_list() noexcept = default;
  client_list(const client_list&) = delete;
  client_list& operator=(const client_list&) = delete;

  // Adds what is to be told of the clients. `name`: the export's, which outlives `into`.
  void report(client_reports& into, const std::string& name) const noexcept;

 private:
  friend class client_entry;

  mutable mutex lock_;
  mutable intrusive_list<client_entry, &client_entry::link> all_ FOREBAY_GUARDED_BY(lock_);
};

}  // namespace forebay
