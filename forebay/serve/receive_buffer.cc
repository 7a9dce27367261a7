#include "forebay/serve/receive_buffer.h"

#include <algorithm>
#include <cstring>

namespace forebay {

receive_buffer::receive_buffer(int fd, request_memory& memory) noexcept
    : fd_(fd),
      memory_(memory),
      small_(static_cast<std::byte*>(memory.allocate(small_bytes))),
      bytes_(small_) {}

receive_buffer::~receive_buffer() {
  if (bytes_ != small_) memory_.free_extra(bytes_, large_bytes);
  if (small_ != nullptr) memory_.free(small_, small_bytes);
}

// What is available lies at the beginning of `to` afterwards.
void receive_buffer::move_to(std::byte* to) noexcept {
  std::memmove(to, bytes_ + start_, end_ - start_);
  if (moved_ != nullptr) moved_->add(static_cast<std::int64_t>(end_ - start_));
  end_ -= start_;
  start_ = 0;
}

bool receive_buffer::enlarge() noexcept {
  if (bytes_ != small_) return true;
  auto* const large = static_cast<std::byte*>(memory_.allocate_extra(large_bytes));
  if (large == nullptr) return false;
  move_to(large);
  bytes_ = large;
  capacity_ = large_bytes;
  small_receives_ = 0;
  return true;
}

// The large buffer, which is empty, goes back.
void receive_buffer::make_small() noexcept {
  memory_.free_extra(bytes_, large_bytes);
  bytes_ = small_;
  capacity_ = small_bytes;
}

// Learns from a receive that got so much where there was room for so much.
void receive_buffer::adapt(std::size_t received, std::size_t room) noexcept {
  if (bytes_ == small_) {
    if (received == room) enlarge();  // or not
  } else if (end_ - start_ <= small_bytes) {
    ++small_receives_;
  } else {
    small_receives_ = 0;
  }
}

// So much has come to where there was room for so much.
void receive_buffer::add(std::size_t received, std::size_t room) noexcept {
  end_ += received;
  received_bytes_ += received;
  adapt(received, room);
}

task<> receive_buffer::fill(std::size_t bytes) {
  while (end_ - start_ < bytes) {
    if (start_ == end_) {
      start_ = end_ = 0;
      if (bytes_ != small_ && small_receives_ >= small_receives_max && bytes <= small_bytes) {
        make_small();
      }
    }
    if (capacity_ - start_ < bytes) {
      move_to(bytes_);
    }
    const std::size_t room = capacity_ - end_;
    std::span<std::byte> into{bytes_ + end_, room};
    if (tls_ != nullptr) {
      const std::int32_t n = tls_->decrypt(into);
      if (n == 0) co_return fail(errc::end_of_stream);
      if (n > 0) {
        add(static_cast<std::size_t>(n), room);
        continue;
      }
      if (n != -EAGAIN) co_return fail(-n);
      into = tls_->room();
    }
    dma_domain& domain = loop::current()->plain();
    const auto to = domain.map(into, dma_direction::from_device);
    if (!to) co_return fail(to.error());
    const std::int32_t n = co_await loop::io_first(
        uring_request::receive(fd_, std::span<const dma_segment, 1>(&*to, 1)));
    domain.unmap(*to, dma_direction::from_device);
    if (n == -EINTR || n == -EAGAIN) continue;
    if (n < 0) co_return fail(-n);
    if (n == 0) co_return fail(errc::end_of_stream);
    if (tls_ != nullptr) {
      tls_->received(static_cast<std::size_t>(n));
    } else {
      add(static_cast<std::size_t>(n), room);
    }
  }
  co_return result<>{};
}

task<> receive_buffer::skip(std::uint64_t bytes) {
  while (bytes != 0) {
    if (available().empty()) {
      const result<> r = co_await fill(1);
      if (!r) co_return fail(r.error());
    }
    const std::size_t n = std::min<std::uint64_t>(bytes, available().size());
    consume(n);
    bytes -= n;
  }
  co_return result<>{};
}

}  // namespace forebay
