// A whole conversation with a connection, whatever the client says: for the tests, and for the
// fuzzers of the handshake and of the transmission phase.
//
// The client says all of it at once, then that it has nothing more to say, and takes what it is
// answered. Whatever it was, the connection ends, and what it has taken of its host is back.
#pragma once

#include <sys/socket.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <thread>

#include "forebay/os/socket.h"
#include "forebay/serve/test_host.h"
#include "forebay/serve/test_wire.h"

namespace forebay {

class test_conversation {
 public:
  static constexpr std::size_t longest_bytes = 100'000;  // what a socket holds, by far

  // How the transmission phase is entered.
  enum class beginning : std::uint8_t { none, simple, structured, extended };
  static constexpr unsigned beginnings = 4;

  test_conversation() : host_(test_host::plain_memory(), image_bytes) {}

  // Returns how many bytes the client was answered.
  std::size_t run(beginning how, std::span<const std::byte> said) {
    auto [ours, theirs] = test_host::sockets();
    const int buffer_bytes = 4 << 20;
    FOREBAY_ASSERT(
        ::setsockopt(theirs.get(), SOL_SOCKET, SO_SNDBUF, &buffer_bytes, sizeof buffer_bytes) == 0);
    const bytes first = words_of(how);
    FOREBAY_ASSERT(send_all(theirs.get(), first).has_value());
    FOREBAY_ASSERT(
        send_all(theirs.get(), said.first(std::min(said.size(), longest_bytes))).has_value());
    FOREBAY_ASSERT(::shutdown(theirs.get(), SHUT_WR) == 0);
    std::size_t answered = 0;
    std::thread listener([&answered, fd = theirs.get()] {
      std::array<std::byte, 1u << 16> some;
      for (ssize_t n = 0; (n = ::recv(fd, some.data(), some.size(), 0)) > 0;) {
        answered += static_cast<std::size_t>(n);
      }
    });
    const auto on = loop::create();
    FOREBAY_ASSERT(on.has_value());
    host_.serve(**on, std::move(ours));
    listener.join();
    FOREBAY_ASSERT(host_.memory().statistics().request_bytes == 0);
    FOREBAY_ASSERT(host_.export_at(0)->in_flight().value() == 0);
    return answered;
  }

 private:
  static constexpr std::uint64_t image_bytes = 256u << 10;

  static bytes words_of(beginning how) {
    wire all;
    if (how == beginning::none) return all.data();
    all.put(std::uint32_t{nbd::fixed_newstyle | nbd::no_zeroes});
    if (how != beginning::simple) {
      const auto headers = how == beginning::extended ? nbd::option::extended_headers
                                                      : nbd::option::structured_reply;
      all.put(nbd_words::option(headers).data());
      all.put(nbd_words::option(nbd::option::set_meta_context,
                                nbd_words::context_data("", {nbd::base_allocation}))
                  .data());
    }
    all.put(nbd_words::option(nbd::option::go, nbd_words::go_data("")).data());
    return all.data();
  }

  test_host host_;
};

}  // namespace forebay
