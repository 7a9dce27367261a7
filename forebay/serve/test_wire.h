// What an NBD client says, byte by byte: for tests, and for the fuzzers.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "forebay/serve/nbd_protocol.h"

namespace forebay {

using bytes = std::vector<std::byte>;

inline bytes to_bytes(std::string_view s) {
  const auto* p = reinterpret_cast<const std::byte*>(s.data());
  return {p, p + s.size()};
}

// Big-endian fields and text, one after the other.
class wire {
 public:
  template <std::unsigned_integral T>
  wire& put(T v) {
    std::byte raw[sizeof v];
    nbd::store(raw, v);
    data_.insert(data_.end(), raw, raw + sizeof raw);
    return *this;
  }
  wire& put(std::string_view s) { return put(to_bytes(s)); }
  wire& put(const bytes& b) {
    data_.insert(data_.end(), b.begin(), b.end());
    return *this;
  }
  const bytes& data() const { return data_; }

 private:
  bytes data_;
};

// The protocol's messages of a client.
struct nbd_words {
  static wire option(nbd::option which, const bytes& data = {}) {
    wire w;
    w.put(nbd::option_magic)
        .put(static_cast<std::uint32_t>(which))
        .put(static_cast<std::uint32_t>(data.size()))
        .put(data);
    return w;
  }

  static bytes go_data(std::string_view name, const std::vector<std::uint16_t>& infos = {}) {
    wire w;
    w.put(static_cast<std::uint32_t>(name.size())).put(name);
    w.put(static_cast<std::uint16_t>(infos.size()));
    for (const std::uint16_t i : infos) w.put(i);
    return w.data();
  }

  static bytes context_data(std::string_view name, const std::vector<std::string>& queries) {
    wire w;
    w.put(static_cast<std::uint32_t>(name.size())).put(name);
    w.put(static_cast<std::uint32_t>(queries.size()));
    for (const std::string& q : queries) w.put(static_cast<std::uint32_t>(q.size())).put(q);
    return w.data();
  }

  // With a compact header.
  static wire request(nbd::command c, std::uint64_t cookie, std::uint64_t offset = 0,
                      std::uint32_t length = 0, std::uint16_t flags = 0, const bytes& data = {}) {
    wire w;
    w.put(nbd::request_magic).put(flags).put(static_cast<std::uint16_t>(c)).put(cookie);
    w.put(offset).put(length).put(data);
    return w;
  }
  static wire extended_request(nbd::command c, std::uint64_t cookie, std::uint64_t offset = 0,
                               std::uint64_t length = 0, std::uint16_t flags = 0,
                               const bytes& data = {}) {
    wire w;
    w.put(nbd::extended_request_magic).put(flags).put(static_cast<std::uint16_t>(c)).put(cookie);
    w.put(offset).put(length).put(data);
    return w;
  }
};

}  // namespace forebay
