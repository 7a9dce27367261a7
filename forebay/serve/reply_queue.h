// What a connection sends: headers that are copied, payload that goes out straight from pinned
// pages.
//
// Replies gather in a batch; one sendmsg is under way at a time, and while it is, the next batch
// grows. A batch closes when it is full. Pages stay pinned until their batch is sent.
//
//     batch, 32 KiB:  | state | iovecs … | pins … | bytes of headers … |
//
// One batch is the connection's own; more come from extra memory and go back when they are sent. So
// room() may be refused, but only while something waits to be sent: progress() tells when to ask
// again.
//
// One thread, the connection's.
#pragma once

#include <cstddef>
#include <span>

#include "forebay/memory/page.h"
#include "forebay/os/socket.h"
#include "forebay/ring/loop.h"
#include "forebay/ring/wait_queue.h"
#include "forebay/serve/request_memory.h"
#include "forebay/serve/tls.h"

namespace forebay {

class reply_queue {
 public:
  // What a reply needs of a batch.
  struct need {
    std::size_t iovecs = 1;
    std::size_t pins = 0;
    std::size_t bytes = 0;  // of headers and whatever else is copied
  };

  // What a batch has; nobody may need more.
  static constexpr need most{.iovecs = 768, .pins = 512, .bytes = 16000};

  reply_queue(loop& on, int fd, request_memory& memory) noexcept;
  ~reply_queue();
  reply_queue(const reply_queue&) = delete;
  reply_queue& operator=(const reply_queue&) = delete;

  // False without memory for the connection's own batch: the queue is of no use then.
  bool usable() const noexcept { return own_ != nullptr; }

  // From now on everything is sent by this channel, which stays as long. The queue is idle.
  void use(tls_channel& channel) noexcept { tls_ = &channel; }

  // Makes sure of room for what is appended next, all of it together. False, and nothing changes,
  // when there is no memory for it now: kick(), co_await next_progress(), and ask again.
  [[nodiscard]] bool room(const need& wanted) noexcept;

  // Appends a copy of `data`, for which there is room.
  void append(const std::byte* data, std::size_t bytes) noexcept;

  // Appends `bytes` of the pages' memory, from `from` in the first one on, and takes over the pins.
  // There is room for an iovec and a pin for each.
  void append_pages(std::span<page_ref> pins, std::size_t from, std::size_t bytes) noexcept;

  // Sends what has been appended, together with what this turn of the loop still appends.
  void kick() noexcept;

  // The same without a wait for what is still appended: others have their turn now.
  void send_before_others() noexcept { start_send(); }

  // The same as kick() for replies that have been waited for: once a few have gathered they do not
  // wait for the turn's end, so that the client works on them while the rest is being made.
  void send_soon() noexcept;
  // The same, however few.
  void send_at_once() noexcept;

  // Frames of the pages pinned by replies that are not sent yet.
  std::size_t pinned_pages() const noexcept { return pinned_; }

  // Nothing is queued or under way.
  bool idle() const noexcept;
  bool broken() const noexcept { return broken_; }

  // So much waits for a peer that does not receive that nothing more should be asked for.
  bool full() const noexcept { return closed_count_ >= max_closed; }

  // Woken whenever a batch has gone out or the peer has.
  wait_queue& progress() noexcept { return progress_; }
  // co_await next_progress(): until the next time of that.
  auto next_progress() noexcept {
    return progress_.wait_unless([] { return false; });
  }
  // while (!idle()) co_await next_idle(): until everything has gone out.
  auto next_idle() noexcept {
    return progress_.wait_unless([this]() noexcept { return idle(); });
  }

  // Bytes sent so far.
  std::uint64_t sent_bytes() const noexcept { return sent_bytes_; }

 private:
  static constexpr std::size_t batch_bytes = 32u << 10;
  static constexpr std::size_t early_frames = 4;
  static constexpr std::size_t max_closed = 16;

  struct batch;

  batch* take_batch() noexcept;
  void give_batch(batch* b) noexcept;
  void close_batch() noexcept;
  void drop_all() noexcept;
  bool take_next() noexcept;
  void start_send() noexcept;
  void submit_send() noexcept;
  void sent(std::int32_t status) noexcept;
  void submit_encrypted() noexcept;
  void sent_encrypted(std::int32_t status) noexcept;

  loop& loop_;
  const int fd_;
  request_memory& memory_;
  tls_channel* tls_ = nullptr;
  iovec tls_piece_{};           // what of it is being sent
  std::int32_t tls_taken_ = 0;  // bytes of `sending_` that it has encrypted
  batch* own_;                  // this connection's, wherever it is
  bool own_free_ = true;        // it is nowhere below
  batch* building_ = nullptr;
  batch* first_closed_ = nullptr;  // a list, to be sent in this order
  batch* last_closed_ = nullptr;
  std::size_t closed_count_ = 0;
  batch* sending_ = nullptr;
  std::size_t pinned_ = 0;
  std::uint64_t sent_bytes_ = 0;
  bool kicked_ = false;
  bool broken_ = false;
  wait_queue progress_;

  struct event : completion {
    reply_queue* self = nullptr;
  };
  event kick_event_;
  event send_event_;
};

}  // namespace forebay
