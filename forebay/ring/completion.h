// The one completion model: every operation that ends later ends in a `completion`.
//
// A completion is an intrusive record with a function and a status. Three views of it: a function
// is called by it; a coroutine co_awaits it (see task.h); a plain thread waits for it on a futex
// (see executor.h, sync_wait). Whoever completes one never runs it on the spot: it is queued on an
// executor and run from that executor's flat loop, so the stack stays bounded.
//
// Ownership: the record belongs to who started the operation and must stay alive until it has run.
#pragma once

#include <cstdint>

namespace forebay {

struct completion {
  using function = void (*)(completion&) noexcept;

  completion() noexcept = default;
  constexpr explicit completion(function f) noexcept : run(f) {}
  completion(const completion&) = delete;
  completion& operator=(const completion&) = delete;

  completion* next = nullptr;  // of the queue that it is on
  function run = nullptr;
  std::int32_t status = 0;  // a count, or a negative errno value
  bool urgent = false;      // a loop runs it before what is ready already (see loop::io_first)
  bool transfer = false;    // a loop's: of a file's data
};

// First in, first out; one thread.
class completion_queue {
 public:
  completion_queue() noexcept = default;
  completion_queue(const completion_queue&) = delete;  // an empty queue points into itself
  completion_queue& operator=(const completion_queue&) = delete;

  bool empty() const noexcept { return head_ == nullptr; }

  void push(completion& c) noexcept {
    c.next = nullptr;
    *tail_ = &c;
    tail_ = &c.next;
  }

  void push_front(completion& c) noexcept {
    c.next = head_;
    if (head_ == nullptr) tail_ = &c.next;
    head_ = &c;
  }

  completion* pop() noexcept {
    completion* c = head_;
    if (c == nullptr) return nullptr;
    head_ = c->next;
    if (head_ == nullptr) tail_ = &head_;
    return c;
  }

  // Appends all of `other`, which is empty afterwards.
  void splice(completion_queue& other) noexcept {
    if (other.empty()) return;
    *tail_ = other.head_;
    tail_ = other.tail_;
    other.head_ = nullptr;
    other.tail_ = &other.head_;
  }

 private:
  completion* head_ = nullptr;
  completion** tail_ = &head_;
};

}  // namespace forebay
