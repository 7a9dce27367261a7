// What a connection sends: headers that are copied, payload that goes out straight from pinned
// pages.
//
// Replies gather in a batch; one sendmsg is under way at a time, and while it is, the next batch
// grows. A batch closes when it is full. Pages stay pinned until their batch is sent.
//
// One thread, the connection's.
#pragma once

#include <array>
#include <cstddef>
#include <deque>
#include <memory>
#include <span>
#include <vector>

#include "forebay/memory/page.h"
#include "forebay/os/socket.h"
#include "forebay/ring/loop.h"
#include "forebay/ring/wait_queue.h"

namespace forebay {

class reply_queue {
 public:
  reply_queue(loop& on, int fd);
  ~reply_queue();
  reply_queue(const reply_queue&) = delete;
  reply_queue& operator=(const reply_queue&) = delete;

  // Appends a copy of `data`.
  void append(const std::byte* data, std::size_t bytes);

  // Appends `bytes` of the pages' memory, from `from` in the first one on, and takes over the pins.
  void append_pages(std::span<page_ref> pins, std::size_t from, std::size_t bytes);

  // Sends what has been appended, together with what this turn of the loop still appends.
  void kick() noexcept;

  // The same for replies that have been waited for: once a few have gathered they do not wait for
  // the turn's end, so that the client works on them while the rest is being made.
  void send_soon() noexcept;

  // Pages pinned by replies that are not sent yet.
  std::size_t pinned_pages() const noexcept { return pinned_; }

  // Nothing is queued or under way.
  bool idle() const noexcept { return !sending_ && !kicked_ && closed_.empty() && !building_; }
  bool broken() const noexcept { return broken_; }

  // So much waits for a peer that does not receive that nothing more should be asked for.
  bool full() const noexcept { return closed_.size() >= max_closed; }

  // Woken whenever a batch has gone out or the peer has.
  wait_queue& progress() noexcept { return progress_; }

  // Bytes sent so far.
  std::uint64_t sent_bytes() const noexcept { return sent_bytes_; }

 private:
  static constexpr std::size_t max_iovecs = 1000;  // below the kernel's 1024
  static constexpr std::size_t header_room = 16384;
  static constexpr std::size_t early_pins = 4;
  static constexpr std::size_t max_closed = 16;  // batches, of about 32 KiB

  struct batch;

  batch& open_batch(std::size_t iovecs, std::size_t header_bytes);
  bool take_next() noexcept;
  void start_send() noexcept;
  void submit_send() noexcept;
  void sent(std::int32_t status) noexcept;
  void recycle(std::unique_ptr<batch> b) noexcept;

  loop& loop_;
  const int fd_;
  std::unique_ptr<batch> building_;
  std::deque<std::unique_ptr<batch>> closed_;
  std::unique_ptr<batch> sending_;
  std::unique_ptr<batch> spare_;
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
