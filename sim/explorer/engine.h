// The machine that an execution runs on: threads that are fibers, a scheduler that chooses among
// them, and a memory that may answer a load with any store that the rules of C++20 allow.
//
//    thread 1 ──┐                                 location: s0 ── s1 ── s2 ── s3   (modification
//    thread 2 ──┼── point(): who goes on? ──►                  ▲           ▲        order)
//    thread 3 ──┘                              of thread 1: may read s1, s2 or s3; of thread 2: s3
//
// Scheduling. Before each operation on an atomic the running thread asks which thread goes on; only
// one runs at a time, so an execution is a sequence of operations. A thread that waits (for a lock,
// on a futex, or in a loop that reads the same again and again) is not asked for until something
// has happened that it waits for.
//
// Memory. Each location has its stores in modification order. A thread's view (view.h) tells how
// far behind it may read. A load reads any store from there to the last one; a store goes to any
// place behind it in the order; a read-modify-write goes right behind the store that it reads,
// where no other read-modify-write is. A message (the view that a release leaves with its store)
// is joined by who acquires it. Sequentially consistent operations and fences have one more view in
// common, in the order in which they run. Together with all interleavings that gives every
// execution that C++20 allows in which no load reads from a store that comes later in the union of
// program order and reads-from (docs/explorer.md says what is left out).
//
// Plain data. An access that does not happen after (before, for a write) all that conflict with it
// is a data race and ends the execution with a failure, whatever value it would have seen.
//
// Equal states. What a thread has read determines where it is, so the hash of all that the threads
// have read, of each location's order, and of the common view determines the state. A state that
// was met before has been explored; the execution is given up there (the happens-before caching of
// Musuvathi and Qadeer, 2007).
//
// Not thread-safe: one thread explores. The library's code under test calls in through
// model_atomics.h.
#pragma once

#include <array>
#include <atomic>
#include <bit>
#include <cstdint>
#include <memory>
#include <source_location>
#include <string>
#include <vector>

#include "sim/explorer/choices.h"
#include "sim/explorer/fiber.h"
#include "sim/explorer/options.h"
#include "sim/explorer/seen_states.h"
#include "sim/explorer/sites.h"
#include "sim/explorer/trace.h"
#include "sim/explorer/view.h"

namespace forebay::explorer {

inline constexpr std::uint16_t no_index = UINT16_MAX;

// What a model atomic consists of.
struct word {
  std::uint64_t initial = 0;  // what the constructor put there
  std::uint64_t name = 0;     // the same in each execution in which it is made by the same steps
  std::uint32_t execution = 0;
  std::int16_t made_at = 0;  // clock of its maker
  std::uint8_t maker = 0;
  bool gone = false;
  std::uint16_t lane = no_index;  // its location, once it has been used
};

// What a model's plain object knows of its accesses.
struct plain_word {
  std::uint32_t execution = 0;
  std::uint8_t writer = 0;
  bool gone = false;
  std::int16_t written_at = 0;                      // clock of the writer
  std::array<std::int16_t, threads_max> read_at{};  // clock of each reader
};

// What a model mutex consists of.
struct lock_word {
  std::uint64_t name = 0;
  std::uint64_t history = 0;  // hash of who has had it, in their order
  std::uint32_t execution = 0;
  std::uint8_t owner = threads_max;
  view left;  // what the last owner knew
};

class engine {
 public:
  static constexpr std::size_t scenario_bytes = std::size_t{64} << 10;
  static constexpr std::size_t scenario_alignment = 4096;

  engine();
  ~engine();
  engine(const engine&) = delete;
  engine& operator=(const engine&) = delete;

  // The one that runs an execution now.
  static engine& current() noexcept;

  // Goes through executions of `p` as the options say.
  outcome explore(const program& p, const options& opts, site_table* sites = nullptr);

  // --- called from inside an execution ---
  using modify = std::uint64_t (*)(std::uint64_t old, std::uint64_t operand);

  void make(word& w, std::uint64_t value) noexcept;
  void destroy(word& w) noexcept;
  std::uint64_t load(word& w, std::memory_order order, std::source_location where);
  void store(word& w, std::uint64_t value, std::memory_order order, std::source_location where);
  std::uint64_t read_modify_write(word& w, modify f, std::uint64_t operand, std::memory_order order,
                                  std::source_location where);
  bool compare_exchange(word& w, std::uint64_t& expected, std::uint64_t desired, bool weak,
                        std::memory_order success, std::memory_order failure,
                        std::source_location where);
  void fence(std::memory_order order, std::source_location where);

  void make(plain_word& w) noexcept;
  void destroy(plain_word& w) noexcept;
  void read(plain_word& w);
  void write(plain_word& w);

  void make(lock_word& w) noexcept;
  void lock(lock_word& w);
  bool try_lock(lock_word& w);
  void unlock(lock_word& w);

  // As futex(2) does: wait returns at once if the word, read when all wakes before have been seen,
  // is not `expected`. False: the time was over.
  bool futex_wait(word& w, std::uint64_t expected, bool timed, std::source_location where);
  unsigned futex_wake(word& w, unsigned count, std::source_location where);
  // How many of the running thread's timed waits have ended by their timeout.
  unsigned timeouts() const noexcept { return threads_[self_].timeouts; }

  // 0 to n - 1: every one of them in some execution.
  unsigned choose(unsigned n);
  // The running thread goes on only when another has stored something.
  void yield();
  // 0 in a scenario's constructor, finish() and destructor, from 1 in its threads.
  unsigned thread() const noexcept { return self_; }

  [[noreturn]] void fail(const char* message);
  [[noreturn]] [[gnu::format(printf, 2, 3)]] void fail_with(const char* format, ...);

 private:
  enum class end : std::uint8_t { complete, pruned, failed };
  enum class waits_for : std::uint8_t { nothing, change, lock, wake, never };

  struct store_record {
    std::uint64_t value;
    std::uint64_t name;
    std::int16_t time;
    std::uint16_t before;  // in modification order
    std::uint16_t after;
    std::uint16_t message;  // view that an acquiring reader joins, or no_index
    bool read_by_modify;    // the next in the order is a read-modify-write that has read this
  };

  struct location {
    std::uint64_t name;
    std::uint64_t order_hash;
    std::uint64_t common_name;  // of the store that the common view has come to
    std::uint16_t first;
    std::uint16_t last;
    std::array<std::int16_t, threads_max> used_at;  // clock of each thread's last access
  };

  struct spin_read {
    std::uint16_t lane;
    std::uint16_t store;
    unsigned times;
  };
  static constexpr unsigned spin_reads_kept = 8;

  struct thread_state {
    view now;         // what it knows
    view to_acquire;  // what an acquire fence would add
    view released;    // what it knew at its last release fence
    bool has_to_acquire;
    bool has_released;
    waits_for waiting;
    bool timed;
    bool timed_out;
    unsigned timeouts_left;
    unsigned timeouts;
    unsigned spin_count;
    std::uint16_t sleeps_on;
    const lock_word* wants;
    std::uint32_t events;
    std::uint32_t made;
    std::uint64_t chain;  // hash of all that it has done
    unsigned priority;    // for random schedules
    std::array<spin_read, spin_reads_kept> spins;
  };

  static constexpr std::int16_t time_step = 32;
  static constexpr std::size_t stores_max = 8192;

  static std::uint64_t mix(std::uint64_t h, std::uint64_t x) noexcept {
    h = (std::rotl(h, 23) ^ x) * 0x9e37'79b9'7f4a'7c15;
    return h ^ (h >> 29);
  }
  static std::uint64_t last_mix(std::uint64_t h) noexcept {
    h = (h ^ (h >> 32)) * 0xd6e8'feb8'6659'fd93;
    return h ^ (h >> 32);
  }

  // engine.cc: executions
  end run_once();
  void begin_execution();
  void run_program();
  static void enter_program(void* self);
  static void enter_thread(void* self);
  [[noreturn]] void leave(end how);
  void draw_schedule();
  void report_failure();
  end replay(const std::string& text);
  void explore_depth_first();
  void explore_at_random();

  // schedule.cc
  void point() {
    if (concurrent_) take_turn();
  }
  void take_turn();
  void give_way();
  unsigned next_thread();
  unsigned alternatives(std::array<std::uint8_t, threads_max>& list) noexcept;
  unsigned draw_thread(const std::array<std::uint8_t, threads_max>& list, unsigned n);
  bool unblock_someone();
  void see_everything(unsigned thread) noexcept;
  void go_to(unsigned thread);
  void block(waits_for what);
  void unblock(unsigned thread) noexcept;
  void wait_for_change();
  [[noreturn]] void fail_stuck();
  void take(lock_word& w);
  unsigned pick(unsigned n, bool first_is_usual);

  // memory.cc
  thread_state& me() noexcept { return threads_[self_]; }
  location& touch(word& w, std::source_location where);
  std::uint16_t new_store(std::uint64_t value);
  std::uint16_t new_message(const view& v);
  bool has_room_behind(const store_record& s) const noexcept;
  void place_behind(std::uint16_t lane, std::uint16_t before, std::uint16_t fresh);
  void modify_store(std::uint16_t lane, std::uint16_t read, std::uint64_t value,
                    std::memory_order order);
  void trace_modify(const char* what, const word& w, std::uint16_t read, std::memory_order order,
                    std::source_location where);
  std::int16_t bound(std::uint16_t lane, std::memory_order order) noexcept;
  std::uint16_t choose_store_to_read(word& w, std::memory_order order);
  std::uint16_t choose_store_to_follow(const word& w, std::memory_order order);
  void note_read(std::uint16_t lane, std::uint16_t store, std::memory_order order);
  void publish(std::uint16_t lane, std::uint16_t store, std::memory_order order,
               std::uint16_t inherited);
  void changed(std::uint16_t lane) noexcept;
  void raise_common(std::uint16_t lane, std::uint16_t store) noexcept;
  void join_common();
  std::uint64_t hash_of_common() const noexcept;
  bool too_often(std::uint16_t lane, std::uint16_t store) noexcept;
  void count_spin(std::uint16_t lane, std::uint16_t store) noexcept;
  void step_of(unsigned thread, std::uint64_t what) noexcept;
  void step(std::uint64_t what) noexcept { step_of(self_, what); }
  std::uint64_t event_name() noexcept { return (std::uint64_t{self_} + 1) << 32 | ++me().events; }
  void tick() noexcept { ++me().now.at[self_]; }
  std::memory_order order_at(std::memory_order order, std::source_location where, site_part part) {
    return sites_ == nullptr ? order : sites_->order(order, where, part);
  }
  void check_alive(const word& w, std::source_location where);

  const program* program_ = nullptr;
  options options_;
  site_table* sites_ = nullptr;
  outcome* outcome_ = nullptr;
  choices choices_;
  seen_states seen_;
  generator lots_{1};
  bool random_ = false;
  bool telling_states_apart_ = false;
  bool by_priority_ = false;
  std::array<std::uint32_t, 4> priority_changes_{};
  trace trace_;

  // One execution.
  std::uint32_t execution_ = 0;
  bool concurrent_ = false;  // the threads run, not the main one
  bool entering_ = false;    // the running thread has just begun: it was chosen for its first step
  unsigned self_ = 0;
  std::uint32_t runnable_ = 0;  // a bit for each thread
  std::uint32_t unfinished_ = 0;
  unsigned preemptions_left_ = 0;
  unsigned steps_ = 0;
  unsigned rescues_ = 0;
  unsigned spurious_left_ = 0;
  end ended_ = end::complete;
  std::uint64_t hash_ = 0;
  view common_;  // of sequentially consistent operations
  unsigned locations_used_ = 0;
  std::uint16_t stores_used_ = 0;
  std::uint16_t messages_used_ = 0;
  std::array<char, 512> message_{};

  std::array<thread_state, threads_max> threads_;
  std::array<location, locations_max> locations_;
  std::unique_ptr<store_record[]> stores_;
  std::vector<view, own_memory<view>> messages_;
  std::array<std::unique_ptr<fiber>, threads_max> fibers_;
  alignas(scenario_alignment) std::array<std::byte, scenario_bytes> scenario_memory_;
  void* const scenario_ = scenario_memory_.data();
};

}  // namespace forebay::explorer
