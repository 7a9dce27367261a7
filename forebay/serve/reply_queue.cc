#include "forebay/serve/reply_queue.h"

#include <algorithm>
#include <cstring>

#include "forebay/os/file.h"

namespace forebay {

struct reply_queue::batch {
  std::size_t iovec_count = 0;
  std::size_t header_bytes = 0;
  std::size_t first_unsent = 0;  // iovec that sending has come to
  std::vector<page_ref> pins;
  std::vector<std::unique_ptr<std::byte[]>> long_copies;
  message_header message;
  std::array<iovec, max_iovecs> iovecs;
  std::array<std::byte, header_room> headers;

  void add(const std::byte* data, std::size_t bytes) noexcept {
    if (iovec_count != 0) {
      iovec& last = iovecs[iovec_count - 1];
      if (static_cast<const std::byte*>(last.iov_base) + last.iov_len == data) {
        last.iov_len += bytes;
        return;
      }
    }
    iovecs[iovec_count++] = {const_cast<std::byte*>(data), bytes};
  }

  void clear() noexcept {
    iovec_count = header_bytes = first_unsent = 0;
    pins.clear();
    long_copies.clear();
  }
};

reply_queue::reply_queue(loop& on, int fd) : loop_(on), fd_(fd) {
  kick_event_.self = this;
  kick_event_.run = [](completion& c) noexcept {
    reply_queue& q = *static_cast<event&>(c).self;
    q.kicked_ = false;
    q.start_send();
    if (!q.sending_) q.progress_.wake_all();  // nothing was left to send
  };
  send_event_.self = this;
  send_event_.run = [](completion& c) noexcept { static_cast<event&>(c).self->sent(c.status); };
}

reply_queue::~reply_queue() { FOREBAY_ASSERT(!sending_ && !kicked_); }

// The batch that takes so much more; closes the one that has no room.
reply_queue::batch& reply_queue::open_batch(std::size_t iovecs, std::size_t header_bytes) {
  if (building_ && (building_->iovec_count + iovecs > max_iovecs ||
                    building_->header_bytes + header_bytes > header_room)) {
    closed_.push_back(std::move(building_));
  }
  if (!building_) building_ = spare_ ? std::move(spare_) : std::make_unique<batch>();
  return *building_;
}

void reply_queue::append(const std::byte* data, std::size_t bytes) {
  if (broken_ || bytes == 0) return;
  if (bytes > header_room / 4) {
    batch& b = open_batch(1, 0);
    auto copy = std::make_unique<std::byte[]>(bytes);
    std::memcpy(copy.get(), data, bytes);
    b.add(copy.get(), bytes);
    b.long_copies.push_back(std::move(copy));
    return;
  }
  batch& b = open_batch(1, bytes);
  std::byte* const at = b.headers.data() + b.header_bytes;
  std::memcpy(at, data, bytes);
  b.header_bytes += bytes;
  b.add(at, bytes);
}

void reply_queue::append_pages(std::span<page_ref> pins, std::size_t from, std::size_t bytes) {
  for (page_ref& p : pins) {
    if (broken_) {
      p.reset();
      continue;
    }
    batch& b = open_batch(1, 0);
    const std::size_t n = std::min(bytes, page_bytes - from);
    b.add(p->data() + from, n);
    b.pins.push_back(std::move(p));
    ++pinned_;
    bytes -= n;
    from = 0;
  }
}

void reply_queue::kick() noexcept {
  if (kicked_ || sending_ || broken_) return;
  kicked_ = true;
  loop_.defer(kick_event_);
}

void reply_queue::send_soon() noexcept {
  const bool enough = building_ && building_->pins.size() >= early_pins;
  if (!enough || sending_ || broken_ || !closed_.empty()) return kick();
  // Straight away: a submission's end would be seen only after all that is ready now.
  take_next();
  const std::int32_t n = send_now(fd_, sending_->message);
  if (n == -EAGAIN) return submit_send();
  sent(n);
}

// The next batch becomes the one that is being sent; false if there is none.
bool reply_queue::take_next() noexcept {
  if (!closed_.empty()) {
    sending_ = std::move(closed_.front());
    closed_.pop_front();
  } else {
    sending_ = std::move(building_);
  }
  if (!sending_) return false;
  batch& b = *sending_;
  b.message.set({b.iovecs.data() + b.first_unsent, b.iovec_count - b.first_unsent});
  return true;
}

void reply_queue::start_send() noexcept {
  if (!sending_ && !broken_ && take_next()) submit_send();
}

void reply_queue::submit_send() noexcept {
  const batch& b = *sending_;
  loop_.submit({.opcode = uring_opcode::sendmsg,
                .fd = fd_,
                .address = b.message.get(),
                .flags = msg_nosignal},
               send_event_);
}

void reply_queue::sent(std::int32_t status) noexcept {
  std::unique_ptr<batch> b = std::move(sending_);
  if (status == -EINTR || status == -EAGAIN) status = 0;
  if (status < 0) {
    broken_ = true;
    shutdown_socket(fd_);
    pinned_ = 0;
    b.reset();
    closed_.clear();
    building_.reset();
    progress_.wake_all();
    return;
  }
  sent_bytes_ += static_cast<std::uint32_t>(status);
  const std::span<iovec> all(b->iovecs.data() + b->first_unsent, b->iovec_count - b->first_unsent);
  const std::span<iovec> left = advance_segments(all, static_cast<std::size_t>(status));
  if (left.empty()) {
    pinned_ -= b->pins.size();
    recycle(std::move(b));
    progress_.wake_all();
  } else {
    b->first_unsent = b->iovec_count - left.size();
    closed_.push_front(std::move(b));
  }
  start_send();
}

void reply_queue::recycle(std::unique_ptr<batch> b) noexcept {
  b->clear();
  if (!spare_) spare_ = std::move(b);
}

}  // namespace forebay
