#include "forebay/serve/receive_buffer.h"

#include <algorithm>
#include <cstring>

namespace forebay {

task<> receive_buffer::fill(std::size_t bytes) {
  while (end_ - start_ < bytes) {
    if (start_ == end_) start_ = end_ = 0;
    if (capacity - start_ < bytes) {
      std::memmove(bytes_.get(), bytes_.get() + start_, end_ - start_);
      end_ -= start_;
      start_ = 0;
    }
    const std::int32_t n =
        co_await loop::io_first({.opcode = uring_opcode::recv,
                                 .fd = fd_,
                                 .address = bytes_.get() + end_,
                                 .length = static_cast<std::uint32_t>(capacity - end_)});
    if (n == -EINTR || n == -EAGAIN) continue;
    if (n < 0) co_return fail(-n);
    if (n == 0) co_return fail(errc::end_of_stream);
    end_ += static_cast<std::size_t>(n);
    received_bytes_ += static_cast<std::uint32_t>(n);
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
