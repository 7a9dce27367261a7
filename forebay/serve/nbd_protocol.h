// The NBD protocol's numbers and byte order (NetworkBlockDevice/nbd, doc/proto.md). All integers on
// the wire are big-endian. Extended headers are those of its branch extension-ext-header.
#pragma once

#include <array>
#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace forebay::nbd {

inline constexpr std::uint64_t init_magic = 0x4e42444d41474943;    // "NBDMAGIC"
inline constexpr std::uint64_t option_magic = 0x49484156454f5054;  // "IHAVEOPT"
inline constexpr std::uint64_t option_reply_magic = 0x0003e889045565a9;
inline constexpr std::uint32_t request_magic = 0x25609513;
inline constexpr std::uint32_t simple_reply_magic = 0x67446698;
inline constexpr std::uint32_t structured_reply_magic = 0x668e33ef;
inline constexpr std::uint32_t extended_request_magic = 0x21e41c71;
inline constexpr std::uint32_t extended_reply_magic = 0x6e8a278c;

enum handshake_flag : std::uint16_t { fixed_newstyle = 1u << 0, no_zeroes = 1u << 1 };

enum class option : std::uint32_t {
  export_name = 1,
  abort = 2,
  list = 3,
  starttls = 5,
  info = 6,
  go = 7,
  structured_reply = 8,
  list_meta_context = 9,
  set_meta_context = 10,
  extended_headers = 11,
  // Forebay's own: the server's statistics as JSON text, in a reply of type `statistics`, then an
  // acknowledgement. Other servers answer it as any unknown option.
  statistics = 0x46425354,  // "FBST"
  // Forebay's own: changes of the running server (server::tune), each a line "KEY=VALUE". An
  // acknowledgement when all are made; error_policy from who may not, error_invalid when one cannot
  // be, both with a line of text, and nothing has changed then.
  tune = 0x4642544e,  // "FBTN"
};

enum class option_reply : std::uint32_t {
  ack = 1,
  server = 2,
  info = 3,
  meta_context = 4,
  statistics = 0x46425354,
  error_unsupported = 0x80000001,
  error_policy = 0x80000002,
  error_invalid = 0x80000003,
  error_tls_required = 0x80000005,
  error_unknown = 0x80000006,
  error_shutdown = 0x80000007,
  error_too_big = 0x80000009,
  error_extended_headers = 0x8000000a,  // required, or in use already
};

enum class info : std::uint16_t { export_info = 0, name = 1, description = 2, block_size = 3 };

enum transmission_flag : std::uint16_t {
  has_flags = 1u << 0,
  read_only = 1u << 1,
  send_flush = 1u << 2,
  send_fua = 1u << 3,
  send_trim = 1u << 5,
  send_write_zeroes = 1u << 6,
  send_df = 1u << 7,
  can_multi_conn = 1u << 8,
  send_cache = 1u << 10,
  send_fast_zero = 1u << 11,
  block_status_payload = 1u << 12,
};

enum class command : std::uint16_t {
  read = 0,
  write = 1,
  disconnect = 2,
  flush = 3,
  trim = 4,
  cache = 5,
  write_zeroes = 6,
  block_status = 7,
};

enum command_flag : std::uint16_t {
  flag_fua = 1u << 0,
  flag_no_hole = 1u << 1,
  flag_df = 1u << 2,
  flag_req_one = 1u << 3,
  flag_fast_zero = 1u << 4,
  flag_payload_len = 1u << 5,
};

enum class chunk : std::uint16_t {
  none = 0,
  offset_data = 1,
  offset_hole = 2,
  block_status = 5,
  block_status_ext = 6,
  error = 0x8001,
  error_offset = 0x8002,
};
inline constexpr std::uint16_t chunk_done = 1u << 0;

// What a block status says of an extent, in the context base:allocation, and in forebay:cache.
enum status_flag : std::uint32_t { status_hole = 1u << 0, status_zero = 1u << 1 };
enum cache_status_flag : std::uint32_t { status_resident = 1u << 0, status_dirty = 1u << 1 };

inline constexpr std::uint32_t max_payload_bytes = 32u << 20;  // of a read or write
inline constexpr std::uint32_t max_option_bytes = 64u << 10;
inline constexpr std::uint32_t max_string_bytes = 4096;

inline constexpr const char* base_allocation = "base:allocation";
inline constexpr const char* forebay_cache = "forebay:cache";
// The contexts that a client can select. On the wire context i is i + 1; a set of them has bit i.
enum class meta_context : unsigned { allocation, cache };
inline constexpr std::array<const char*, 2> meta_contexts{base_allocation, forebay_cache};
using meta_context_set = std::uint8_t;
constexpr meta_context_set set_of(meta_context c) noexcept {
  return static_cast<meta_context_set>(1u << static_cast<unsigned>(c));
}

inline constexpr std::size_t request_bytes = 28;
inline constexpr std::size_t extended_request_bytes = 32;
inline constexpr std::size_t simple_reply_bytes = 16;
inline constexpr std::size_t chunk_header_bytes = 20;
inline constexpr std::size_t extended_chunk_header_bytes = 32;

// A request in host order.
struct request {
  std::uint16_t flags;
  std::uint16_t type;
  std::uint64_t cookie;
  std::uint64_t offset;
  std::uint64_t length;
  // Not on the wire: when it was received, and of a block status what it is asked for.
  std::uint64_t arrived_ns;
  meta_context_set contexts = 0;

  command what() const noexcept { return static_cast<command>(type); }
  std::uint64_t end() const noexcept { return offset + length; }
};

template <std::unsigned_integral T>
constexpr T big_endian(T v) noexcept {
  if constexpr (std::endian::native == std::endian::big || sizeof(T) == 1) {
    return v;
  } else {
    return std::byteswap(v);
  }
}

template <std::unsigned_integral T>
T load(const std::byte* at) noexcept {
  T v;
  std::memcpy(&v, at, sizeof v);
  return big_endian(v);
}

template <std::unsigned_integral T>
void store(std::byte* at, T v) noexcept {
  v = big_endian(v);
  std::memcpy(at, &v, sizeof v);
}

// A message of bounded size that is put together field by field.
template <std::size_t Capacity>
class message {
 public:
  template <std::unsigned_integral T>
  message& put(T v) noexcept {
    store(bytes_.data() + size_, v);
    size_ += sizeof v;
    return *this;
  }
  const std::byte* data() const noexcept { return bytes_.data(); }
  std::size_t size() const noexcept { return size_; }

 private:
  std::array<std::byte, Capacity> bytes_;
  std::size_t size_ = 0;
};

// The protocol's error number for an errno value: those it does not know become EINVAL or EIO.
std::uint32_t wire_error(int error) noexcept;

}  // namespace forebay::nbd
