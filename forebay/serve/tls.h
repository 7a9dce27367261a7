// TLS for NBD clients (NetworkBlockDevice/nbd doc/proto.md, "TLS support"), by GnuTLS.
//
//                 decrypt()                room(), received()
//   receive_buffer <──── session <──── in, 18 KiB <──── recv
//   reply_queue    ────> session ────> out, 34 KiB ───> send
//                 encrypt()                unsent(), sent()
//
// A channel moves no byte by itself: who has a socket receives into room() and sends what unsent()
// says, by its loop, and GnuTLS never waits. Payload is gathered into records of 16 KiB, which
// costs a copy beside the encryption; connections without TLS have no channel and stay as they are.
//
// Memory: the buffers of a channel are extra request memory; GnuTLS has a session's state, some
// tens of KiB, and a record under way on the heap. A handshake's asymmetric part holds its loop up,
// for about a millisecond with RSA of 2048 bits, less with elliptic curves.
//
// Credentials are constant once loaded: any thread. A channel is its connection's thread's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <expected>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "forebay/base/stats.h"
#include "forebay/os/socket.h"
#include "forebay/ring/task.h"
#include "forebay/serve/request_memory.h"

struct gnutls_session_int;
struct gnutls_certificate_credentials_st;
struct gnutls_psk_server_credentials_st;
struct gnutls_priority_st;

namespace forebay {

// Whether clients may, or must, ask for TLS: NOTLS, SELECTIVETLS and FORCEDTLS of the protocol.
enum class tls_policy : std::uint8_t { off, allow, require };

class tls_credentials {
 public:
  struct sources {
    // A directory with ca-cert.pem, server-cert.pem, server-key.pem and, if there is one,
    // ca-crl.pem: the names that nbdkit and QEMU use.
    std::string certificates;
    std::string psk;           // a file of lines USER:HEXKEY, as psktool(1) writes it
    bool verify_peer = false;  // clients must have a certificate that ca-cert.pem's CA has signed
  };

  // At least one source is named. All is read now and never again. Error: in words for the user.
  static std::expected<std::unique_ptr<tls_credentials>, std::string> load(const sources& from);
  ~tls_credentials();
  tls_credentials(const tls_credentials&) = delete;
  tls_credentials& operator=(const tls_credentials&) = delete;

 private:
  friend class tls_channel;

  struct user {
    std::string name;
    std::vector<unsigned char> key;
  };

  tls_credentials() noexcept = default;
  std::string load_certificates(const std::string& directory);
  std::string load_keys(const std::string& file);
  const user* find(std::string_view name) const noexcept;

  gnutls_certificate_credentials_st* certificates_ = nullptr;
  gnutls_psk_server_credentials_st* psk_ = nullptr;
  gnutls_priority_st* priorities_ = nullptr;
  std::vector<user> users_;
  bool verify_peer_ = false;
};

class tls_channel {
  friend class tls_credentials;

 public:
  static constexpr std::size_t record_bytes = 16u << 10;
  static constexpr std::size_t in_bytes = 18u << 10;
  static constexpr std::size_t out_bytes = 34u << 10;
  static constexpr std::size_t memory_bytes = record_bytes + in_bytes + out_bytes;

  tls_channel(const tls_credentials& credentials, request_memory& memory) noexcept;
  ~tls_channel();
  tls_channel(const tls_channel&) = delete;
  tls_channel& operator=(const tls_channel&) = delete;

  // False without memory: it is of no use then.
  bool usable() const noexcept { return memory_start_ != nullptr && session_ != nullptr; }

  // The server's side of a TLS handshake over the socket. Errors: errc::protocol if the client
  // did not come to terms, and problem() says why; errc::end_of_stream, errno.
  task<> handshake(int fd);
  const char* problem() const noexcept { return problem_; }

  // What has been received, decrypted: a count of bytes, 0 at the end of the stream, -EAGAIN when
  // more has to be received first, or another negative errno.
  std::int32_t decrypt(std::span<std::byte> into) noexcept;
  // After -EAGAIN: where to receive to, and how much has been.
  std::span<std::byte> room() noexcept { return {in_, in_bytes}; }
  void received(std::size_t bytes) noexcept;

  // Encrypts the beginning of `data`, when nothing is unsent: the count of bytes of it, or a
  // negative errno.
  std::int32_t encrypt(std::span<const iovec> data) noexcept;
  std::span<std::byte> unsent() const noexcept {
    return {out_ + out_start_, out_end_ - out_start_};
  }
  void sent(std::size_t bytes) noexcept;

  // From now on the bytes that are copied into GnuTLS and out of it are counted there.
  void count_copies(counter& copied) noexcept { copied_ = &copied; }

  // Tells the peer that nothing more comes, if that can be sent without waiting.
  void close(int fd) noexcept;

 private:
  static ssize_t push(void* self, const void* data, std::size_t bytes) noexcept;
  static ssize_t pull(void* self, void* data, std::size_t bytes) noexcept;
  static int key_of(gnutls_session_int* session, const char* name, void* key) noexcept;

  task<> flush(int fd);
  task<> receive(int fd);
  void send_what_goes(int fd) noexcept;
  std::int32_t encrypt_record(const std::byte* data, std::size_t bytes) noexcept;
  void copy(std::byte* to, const void* from, std::size_t bytes) noexcept;

  const tls_credentials& credentials_;
  request_memory& memory_;
  std::byte* const memory_start_;  // of memory_bytes: a record's plain text, and the next two
  std::byte* const in_;            // received, GnuTLS has taken it up to in_start_
  std::byte* const out_;           // encrypted, sent up to out_start_
  std::size_t in_start_ = 0;
  std::size_t in_end_ = 0;
  std::size_t out_start_ = 0;
  std::size_t out_end_ = 0;
  gnutls_session_int* session_ = nullptr;
  const char* problem_ = "";
  counter* copied_ = nullptr;
};

}  // namespace forebay
