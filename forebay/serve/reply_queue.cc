#include "forebay/serve/reply_queue.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <new>
#include <utility>

#include "forebay/os/file.h"

namespace forebay {

struct reply_queue::batch {
  batch* next = nullptr;  // of the closed ones
  std::size_t iovec_count = 0;
  std::size_t pin_count = 0;
  std::size_t pinned_frames = 0;  // of the pins, which are of more than one where pages are large
  std::size_t header_bytes = 0;
  std::size_t first_unsent = 0;           // iovec that sending has come to
  mapped_message message;                 // of what is left, while it is being sent
  std::array<iovec, most.iovecs> iovecs;  // not initialised, as the next two
  std::array<page*, most.pins> pins;      // one reference each
  std::array<std::byte, most.bytes> headers;

  batch() noexcept {}  // NOLINT: the arrays are written before they are read
  ~batch() { drop_pins(); }
  batch(const batch&) = delete;
  batch& operator=(const batch&) = delete;

  std::span<iovec> left() noexcept {
    return {iovecs.data() + first_unsent, iovec_count - first_unsent};
  }

  bool has_room(const need& n) const noexcept {
    return iovec_count + n.iovecs <= iovecs.size() && pin_count + n.pins <= pins.size() &&
           header_bytes + n.bytes <= headers.size();
  }

  void add(const std::byte* data, std::size_t bytes) noexcept {
    if (iovec_count != 0) {
      iovec& last = iovecs[iovec_count - 1];
      if (static_cast<const std::byte*>(last.iov_base) + last.iov_len == data) {
        last.iov_len += bytes;
        return;
      }
    }
    FOREBAY_ASSERT(iovec_count != iovecs.size());
    iovecs[iovec_count++] = {const_cast<std::byte*>(data), bytes};
  }

  void add_pin(page_ref p) noexcept {
    pinned_frames += p->frames();
    pins[pin_count++] = p.release();
  }
  void drop_pins() noexcept {
    pinned_frames = 0;
    while (pin_count != 0) put_page(*pins[--pin_count]);
  }
};

reply_queue::reply_queue(loop& on, int fd, request_memory& memory) noexcept
    : loop_(on), fd_(fd), memory_(memory) {
  static_assert(sizeof(batch) <= batch_bytes);
  void* const raw = memory_.allocate(batch_bytes);
  own_ = raw == nullptr ? nullptr : static_cast<batch*>(raw);
  kick_event_.self = this;
  kick_event_.run = [](completion& c) noexcept {
    reply_queue& q = *static_cast<event&>(c).self;
    q.kicked_ = false;
    q.start_send();
    if (q.sending_ == nullptr) q.progress_.wake_all();  // nothing was left to send
  };
  send_event_.self = this;
  send_event_.run = [](completion& c) noexcept {
    reply_queue& q = *static_cast<event&>(c).self;
    q.tls_ == nullptr ? q.sent(c.status) : q.sent_encrypted(c.status);
  };
}

reply_queue::~reply_queue() {
  FOREBAY_ASSERT(sending_ == nullptr && !kicked_);
  drop_all();
  if (own_ != nullptr) memory_.free(own_, batch_bytes);
}

bool reply_queue::idle() const noexcept {
  return sending_ == nullptr && !kicked_ && first_closed_ == nullptr &&
         (building_ == nullptr || building_->iovec_count == 0);
}

// An empty batch: the connection's own, or one of extra memory; null when there is none.
reply_queue::batch* reply_queue::take_batch() noexcept {
  void* raw = own_;
  if (!std::exchange(own_free_, false)) raw = memory_.allocate_extra(batch_bytes);
  return raw == nullptr ? nullptr : new (raw) batch;
}

void reply_queue::give_batch(batch* b) noexcept {
  b->~batch();
  if (b == own_) {
    own_free_ = true;
  } else {
    memory_.free_extra(b, batch_bytes);
  }
}

// Moves the batch that is being built to those that wait to be sent.
void reply_queue::close_batch() noexcept {
  building_->next = nullptr;
  (last_closed_ == nullptr ? first_closed_ : last_closed_->next) = building_;
  last_closed_ = std::exchange(building_, nullptr);
  ++closed_count_;
}

bool reply_queue::room(const need& wanted) noexcept {
  if (broken_ || (building_ != nullptr && building_->has_room(wanted))) return true;
  batch* const fresh = take_batch();
  if (fresh == nullptr) return false;
  if (building_ != nullptr) close_batch();
  building_ = fresh;
  return true;
}

void reply_queue::append(const std::byte* data, std::size_t bytes) noexcept {
  if (broken_ || bytes == 0) return;
  FOREBAY_ASSERT(building_ != nullptr && building_->has_room({.iovecs = 0, .bytes = bytes}));
  batch& b = *building_;
  std::byte* const at = b.headers.data() + b.header_bytes;
  std::memcpy(at, data, bytes);
  b.header_bytes += bytes;
  b.add(at, bytes);
}

void reply_queue::append_pages(std::span<page_ref> pins, std::size_t from,
                               std::size_t bytes) noexcept {
  for (page_ref& p : pins) {
    if (broken_) {
      p.reset();
      continue;
    }
    FOREBAY_ASSERT(building_ != nullptr && building_->has_room({.iovecs = 0, .pins = 1}));
    batch& b = *building_;
    const std::size_t n = std::min(bytes, p->bytes() - from);
    b.add(p->data() + from, n);
    pinned_ += p->frames();
    b.add_pin(std::move(p));
    bytes -= n;
    from = 0;
  }
}

void reply_queue::kick() noexcept {
  if (kicked_ || sending_ != nullptr || broken_) return;
  kicked_ = true;
  loop_.defer(kick_event_);
}

void reply_queue::send_soon() noexcept {
  const bool enough = building_ != nullptr && building_->pinned_frames >= early_frames;
  enough ? send_at_once() : kick();
}

void reply_queue::send_at_once() noexcept {
  if (sending_ != nullptr || broken_ || first_closed_ != nullptr || tls_ != nullptr) return kick();
  // Straight away: a submission's end would be seen only after all that is ready now.
  if (!take_next()) return;
  const std::int32_t n = send_now(fd_, sending_->message.header());
  if (n == -EAGAIN) return submit_send();
  sent(n);
}

// The next batch becomes the one that is being sent; false if there is none, or it cannot be.
bool reply_queue::take_next() noexcept {
  if (first_closed_ != nullptr) {
    sending_ = first_closed_;
    first_closed_ = sending_->next;
    if (first_closed_ == nullptr) last_closed_ = nullptr;
    --closed_count_;
  } else if (building_ != nullptr && building_->iovec_count != 0) {
    sending_ = std::exchange(building_, nullptr);
  } else {
    return false;
  }
  if (tls_ != nullptr) return true;  // its pages are not what is sent
  if (const auto r = sending_->message.map(loop_.plain(), sending_->left()); !r) {
    sent(-to_errno(r.error()));
    return false;
  }
  return true;
}

void reply_queue::start_send() noexcept {
  if (sending_ == nullptr && !broken_ && take_next()) submit_send();
}

void reply_queue::submit_send() noexcept {
  if (tls_ != nullptr) return submit_encrypted();
  loop_.submit(uring_request::send(fd_, sending_->message), send_event_);
}

// A few records of the batch that is being sent, or what is left of such.
void reply_queue::submit_encrypted() noexcept {
  if (tls_->unsent().empty()) {
    tls_taken_ = tls_->encrypt(sending_->left());
    if (tls_taken_ < 0) return sent(tls_taken_);
  }
  tls_piece_ = {tls_->unsent().data(), tls_->unsent().size()};
  if (const auto r = sending_->message.map(loop_.plain(), {&tls_piece_, 1}); !r) {
    return sent(-to_errno(r.error()));
  }
  loop_.submit(uring_request::send(fd_, sending_->message), send_event_);
}

void reply_queue::sent_encrypted(std::int32_t status) noexcept {
  sending_->message.unmap();
  if (status == -EINTR || status == -EAGAIN) status = 0;
  if (status < 0) return sent(status);
  tls_->sent(static_cast<std::size_t>(status));
  if (!tls_->unsent().empty()) return submit_encrypted();
  sent(std::exchange(tls_taken_, 0));
}

void reply_queue::drop_all() noexcept {
  while (first_closed_ != nullptr) {
    give_batch(std::exchange(first_closed_, first_closed_->next));
  }
  last_closed_ = nullptr;
  closed_count_ = 0;
  if (building_ != nullptr) give_batch(std::exchange(building_, nullptr));
  pinned_ = 0;
}

void reply_queue::sent(std::int32_t status) noexcept {
  batch* const b = std::exchange(sending_, nullptr);
  b->message.unmap();
  if (status == -EINTR || status == -EAGAIN) status = 0;
  if (status < 0) {
    broken_ = true;
    shutdown_socket(fd_);
    give_batch(b);
    drop_all();
    progress_.wake_all();
    return;
  }
  sent_bytes_ += static_cast<std::uint32_t>(status);
  const std::span<iovec> left = advance_segments(b->left(), static_cast<std::size_t>(status));
  if (left.empty()) {
    pinned_ -= b->pinned_frames;
    give_batch(b);
    progress_.wake_all();
  } else {
    b->first_unsent = b->iovec_count - left.size();
    b->next = first_closed_;
    first_closed_ = b;
    if (last_closed_ == nullptr) last_closed_ = b;
    ++closed_count_;
  }
  start_send();
}

}  // namespace forebay
