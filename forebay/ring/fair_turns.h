// Fair shares of a loop among those who have work for it: deficit round robin over what the work
// costs (Shreedhar and Varghese, "Efficient fair queueing using deficit round robin", 1995).
//
//   a: charge … charge, credit spent ─► [ b c a ] ─► one at a time, with new credit: b goes on …
//
// A party has a credit of `quantum` in a round. What it does is charged; when the credit is spent
// and somebody else wants the loop, it waits for the next round, which begins when all who waited
// for this one have had their turn. What a piece of work cost beyond the credit is taken off the
// next one, so in the long run all who always have work get the same, whatever the size of their
// pieces. Whom the round finds with credit left goes on at once: a party with little work waits for
// nobody's round, only for the turn that is on.
//
// Between two turns the loop looks at what has come. A party that is alone, or finds that nobody
// wants the loop, gets new credit without a wait.
//
// One thread, the loop's.
#pragma once

#include <algorithm>
#include <cstdint>

#include "forebay/base/assert.h"
#include "forebay/base/list.h"
#include "forebay/ring/executor.h"
#include "forebay/ring/task.h"

namespace forebay {

class fair_turns {
 public:
  // In bytes of data; other work costs as much as moving so many bytes would.
  static constexpr std::int64_t quantum = 512 << 10;

  // Somebody who has work.
  class party {
   public:
    // For work that has been, or is being, done.
    void charge(std::uint64_t cost) noexcept { credit_ -= static_cast<std::int64_t>(cost); }
    // Before more is done: may_go_on() or a wait is due.
    bool spent() const noexcept { return credit_ <= 0; }

   private:
    friend class fair_turns;
    std::int64_t credit_ = quantum;
    std::uint64_t round_ = 0;  // that the credit is of
  };

  // Who waits; any number for a party. Stays until `done` is run.
  struct waiter {
    party* of = nullptr;
    completion* done = nullptr;
    std::uint64_t round = 0;  // that he wants the end of
    list_node link;
  };

  explicit fair_turns(executor& on) noexcept : on_(on) {
    next_.self = this;
    next_.run = [](completion& c) noexcept { static_cast<event&>(c).self->turn(); };
  }
  ~fair_turns() { FOREBAY_ASSERT(!contended()); }
  fair_turns(const fair_turns&) = delete;
  fair_turns& operator=(const fair_turns&) = delete;

  // A party counts from join() to leave().
  void join(party& p) noexcept {
    ++parties_;
    p.round_ = round_;
    p.credit_ = quantum;
  }
  void leave(party&) noexcept { --parties_; }

  // Somebody waits for his turn.
  bool contended() const noexcept { return !waiting_.empty(); }

  // Of a party whose credit is spent: whether it need not wait. `wanted`: something may want the
  // loop that is not seen here.
  bool may_go_on(party& p, bool wanted) noexcept {
    renew(p);
    if (!p.spent()) return true;
    if (contended() || (wanted && parties_ > 1)) return false;
    p.credit_ = quantum;
    return true;
  }

  // Has `done` run when it is the party's turn.
  void wait(waiter& w, party& p, completion& done) noexcept {
    if (!contended()) on_.ready(next_);
    w.of = &p;
    w.done = &done;
    w.round = round_;
    waiting_.push_back(w);
  }

  // co_await turn_of(p): the same.
  auto turn_of(party& p) noexcept {
    class awaiter {
     public:
      awaiter(fair_turns& turns, party& p) noexcept : turns_(turns), party_(p) {}
      bool await_ready() const noexcept { return false; }
      void await_suspend(std::coroutine_handle<> h) noexcept {
        resume_.handle = h;
        turns_.wait(waiter_, party_, resume_);
      }
      void await_resume() const noexcept {}

     private:
      fair_turns& turns_;
      party& party_;
      waiter waiter_;
      resume_completion resume_;
    };
    return awaiter(*this, p);
  }

 private:
  struct event : completion {
    fair_turns* self = nullptr;
  };

  void renew(party& p) noexcept {
    if (p.round_ == round_) return;
    p.round_ = round_;
    p.credit_ = std::min<std::int64_t>(p.credit_, 0) + quantum;
  }

  // The next one's. Rounds in which nobody gets rid of what he owes take no time.
  void turn() noexcept {
    for (;;) {
      waiter& w = *waiting_.pop_front();
      if (w.round == round_) ++round_;  // those who waited for this round are through
      renew(*w.of);
      if (!w.of->spent()) {
        on_.ready_first(*w.done);
        break;
      }
      w.round = round_;
      waiting_.push_back(w);
    }
    if (contended()) on_.ready(next_);
    on_.end_turn();
  }

  executor& on_;
  unsigned parties_ = 0;
  std::uint64_t round_ = 1;
  intrusive_list<waiter, &waiter::link> waiting_;  // in order of the rounds
  event next_;                                     // is queued while somebody waits
};

}  // namespace forebay
