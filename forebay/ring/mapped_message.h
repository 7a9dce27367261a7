// A gathered message for a socket, all of whose pieces are mapped for the kernel to read.
#pragma once

#include <span>

#include "forebay/base/assert.h"
#include "forebay/dma/domain.h"
#include "forebay/os/file.h"
#include "forebay/os/socket.h"

namespace forebay {

// It must stay where it is while it is mapped, and so must the pieces. One thread.
class mapped_message {
 public:
  mapped_message() noexcept = default;
  mapped_message(const mapped_message&) = delete;
  mapped_message& operator=(const mapped_message&) = delete;
  ~mapped_message() { unmap(); }

  // Maps the pieces in `domain`, whose addresses must be the process's (an identity_domain), and
  // makes them the message, which must have none. Error, nothing is mapped then: as
  // dma_domain::map().
  [[nodiscard]] result<> map(dma_domain& domain, std::span<iovec> pieces) noexcept;

  // The pieces are the caller's again. Without effect if there are none.
  void unmap() noexcept;

  // In a domain that is checked: that the pieces are still mapped.
  void check_access() const noexcept;

  const message_header& header() const noexcept { return header_; }

 private:
  dma_domain* domain_ = nullptr;
  std::span<iovec> pieces_;
  message_header header_;
};

}  // namespace forebay
