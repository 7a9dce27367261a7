#include "forebay/serve/tls.h"

#include <fmt/format.h>
#include <gnutls/crypto.h>
#include <gnutls/gnutls.h>
#include <gnutls/x509.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <utility>

#include "forebay/os/socket.h"
#include "forebay/ring/loop.h"

namespace forebay {
namespace {

// What a record has beside its payload, and a key update that goes before it.
constexpr std::size_t record_overhead_bytes = 512;

// What hexadecimal digits stand for; empty if they are not all of that, or not of whole bytes.
// (gnutls_hex2bin() passes over what is no digit.)
std::vector<unsigned char> bytes_of_hex(std::string_view digits) {
  std::vector<unsigned char> bytes(digits.size() / 2);
  if (digits.size() % 2 != 0) return {};
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    const char* const at = digits.data() + 2 * i;
    const auto [end, error] = std::from_chars(at, at + 2, bytes[i], 16);
    if (error != std::errc() || end != at + 2) return {};
  }
  return bytes;
}

// What a file holds, of GnuTLS's memory.
class file_content {
 public:
  explicit file_content(const std::string& path) noexcept {
    errno = 0;
    if (::gnutls_load_file(path.c_str(), &content_) == 0) return;
    error_ = {errno != 0 ? errno : EIO, std::generic_category()};
  }
  ~file_content() {
    if (content_.data == nullptr) return;
    ::gnutls_memset(content_.data, 0, content_.size);
    ::gnutls_free(content_.data);
  }
  file_content(const file_content&) = delete;
  file_content& operator=(const file_content&) = delete;

  std::error_code error() const noexcept { return error_; }
  const gnutls_datum_t* get() const noexcept { return &content_; }
  std::string_view text() const noexcept {
    return {reinterpret_cast<const char*>(content_.data), content_.size};
  }

 private:
  gnutls_datum_t content_{nullptr, 0};
  std::error_code error_;
};

}  // namespace

// ---- Credentials ----

std::expected<std::unique_ptr<tls_credentials>, std::string> tls_credentials::load(
    const sources& from) {
  std::unique_ptr<tls_credentials> made(new tls_credentials);
  made->verify_peer_ = from.verify_peer;
  if (!from.certificates.empty()) {
    if (auto problem = made->load_certificates(from.certificates); !problem.empty()) {
      return std::unexpected(problem);
    }
  }
  if (!from.psk.empty()) {
    if (auto problem = made->load_keys(from.psk); !problem.empty()) return std::unexpected(problem);
  }
  // TLS 1.2 and 1.3; keys that were agreed on beforehand only when there are some.
  std::string priorities = "NORMAL:-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2";
  if (!from.psk.empty()) priorities += ":+ECDHE-PSK:+DHE-PSK:+PSK";
  if (const int e = ::gnutls_priority_init(&made->priorities_, priorities.c_str(), nullptr);
      e != 0) {
    return std::unexpected(fmt::format("cannot set TLS up: {}", ::gnutls_strerror(e)));
  }
  return made;
}

tls_credentials::~tls_credentials() {
  if (priorities_ != nullptr) ::gnutls_priority_deinit(priorities_);
  if (certificates_ != nullptr) ::gnutls_certificate_free_credentials(certificates_);
  if (psk_ != nullptr) ::gnutls_psk_free_server_credentials(psk_);
  for (user& u : users_) ::gnutls_memset(u.key.data(), 0, u.key.size());
}

// "" or what is wrong.
std::string tls_credentials::load_certificates(const std::string& directory) {
  const std::array<std::string, 3> names{directory + "/ca-cert.pem", directory + "/server-cert.pem",
                                         directory + "/server-key.pem"};
  const file_content ca(names[0]);
  const file_content certificate(names[1]);
  const file_content key(names[2]);
  for (const auto& [file, name] :
       {std::pair{&ca, &names[0]}, {&certificate, &names[1]}, {&key, &names[2]}}) {
    if (file->error()) return fmt::format("{}: {}", *name, file->error().message());
  }
  if (::gnutls_certificate_allocate_credentials(&certificates_) != 0) return "no memory for TLS";
  int n = ::gnutls_certificate_set_x509_trust_mem(certificates_, ca.get(), GNUTLS_X509_FMT_PEM);
  if (n <= 0) {
    return fmt::format("{}: {}", names[0], n == 0 ? "holds no certificate" : ::gnutls_strerror(n));
  }
  const std::string revoked_name = directory + "/ca-crl.pem";
  const file_content revoked(revoked_name);
  n = 0;
  if (!revoked.error()) {
    n = ::gnutls_certificate_set_x509_crl_mem(certificates_, revoked.get(), GNUTLS_X509_FMT_PEM);
  } else if (revoked.error() != std::errc::no_such_file_or_directory) {
    return fmt::format("{}: {}", revoked_name, revoked.error().message());
  }
  if (n < 0) return fmt::format("{}: {}", revoked_name, ::gnutls_strerror(n));
  n = ::gnutls_certificate_set_x509_key_mem(certificates_, certificate.get(), key.get(),
                                            GNUTLS_X509_FMT_PEM);
  if (n == GNUTLS_E_CERTIFICATE_KEY_MISMATCH) {
    return fmt::format("{}: is not the key of server-cert.pem", names[2]);
  }
  if (n < 0) return fmt::format("{}, or server-key.pem: {}", names[1], ::gnutls_strerror(n));
  ::gnutls_certificate_set_known_dh_params(certificates_, GNUTLS_SEC_PARAM_MEDIUM);
  return {};
}

std::string tls_credentials::load_keys(const std::string& file) {
  const file_content keys(file);
  if (keys.error()) return fmt::format("{}: {}", file, keys.error().message());
  std::string_view left = keys.text();
  for (unsigned number = 1; !left.empty(); ++number) {
    std::string_view line = left.substr(0, left.find('\n'));
    left.remove_prefix(std::min(left.size(), line.size() + 1));
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.empty()) continue;
    const std::size_t colon = line.rfind(':');
    user u;
    if (colon != line.npos && colon != 0 && colon + 1 != line.size()) {
      u.name = line.substr(0, colon);
      u.key = bytes_of_hex(line.substr(colon + 1));
    }
    if (u.key.empty()) {
      return fmt::format("{}: line {} is not USER:HEXKEY, as psktool writes it", file, number);
    }
    users_.push_back(std::move(u));
  }
  if (users_.empty()) return fmt::format("{}: holds no keys; psktool makes one", file);
  if (::gnutls_psk_allocate_server_credentials(&psk_) != 0) return "no memory for TLS";
  ::gnutls_psk_set_server_known_dh_params(psk_, GNUTLS_SEC_PARAM_MEDIUM);
  ::gnutls_psk_set_server_credentials_function(
      psk_, [](gnutls_session_t session, const char* name, gnutls_datum_t* key) {
        return tls_channel::key_of(session, name, key);
      });
  return {};
}

const tls_credentials::user* tls_credentials::find(std::string_view name) const noexcept {
  for (const user& u : users_) {
    if (u.name == name) return &u;
  }
  return nullptr;
}

// ---- Channel ----

tls_channel::tls_channel(const tls_credentials& credentials, request_memory& memory) noexcept
    : credentials_(credentials),
      memory_(memory),
      memory_start_(static_cast<std::byte*>(memory.allocate_extra(memory_bytes))),
      in_(memory_start_ == nullptr ? nullptr : memory_start_ + record_bytes),
      out_(memory_start_ == nullptr ? nullptr : in_ + in_bytes) {
  if (memory_start_ == nullptr) return;
  // Tickets would be sent by and by, and would let a client come back whose certificate is revoked.
  gnutls_session_t s = nullptr;
  if (::gnutls_init(&s, GNUTLS_SERVER | GNUTLS_NONBLOCK | GNUTLS_NO_SIGNAL | GNUTLS_NO_TICKETS) !=
      0) {
    return;
  }
  session_ = s;
  ::gnutls_session_set_ptr(s, this);
  ::gnutls_transport_set_ptr(s, this);
  ::gnutls_transport_set_push_function(s, &push);
  ::gnutls_transport_set_pull_function(s, &pull);
  // The connection has a limit for all of its handshake.
  ::gnutls_handshake_set_timeout(s, GNUTLS_INDEFINITE_TIMEOUT);
  bool good = ::gnutls_priority_set(s, credentials.priorities_) == 0;
  if (credentials.certificates_ != nullptr) {
    good =
        good && ::gnutls_credentials_set(s, GNUTLS_CRD_CERTIFICATE, credentials.certificates_) == 0;
  }
  if (credentials.psk_ != nullptr) {
    good = good && ::gnutls_credentials_set(s, GNUTLS_CRD_PSK, credentials.psk_) == 0;
  }
  if (credentials.verify_peer_) {
    ::gnutls_certificate_server_set_request(s, GNUTLS_CERT_REQUIRE);
    ::gnutls_session_set_verify_cert(s, nullptr, 0);
  }
  if (!good) ::gnutls_deinit(std::exchange(session_, nullptr));
}

tls_channel::~tls_channel() {
  if (session_ != nullptr) ::gnutls_deinit(session_);
  if (memory_start_ == nullptr) return;
  ::gnutls_memset(memory_start_, 0, record_bytes);
  memory_.free_extra(memory_start_, memory_bytes);
}

// Called by GnuTLS for a name. Somebody unknown gets a key that nobody knows, and so the same
// answer as who knows a name but not its key.
int tls_channel::key_of(gnutls_session_int* session, const char* name, void* key) noexcept {
  auto& out = *static_cast<gnutls_datum_t*>(key);
  const auto* self = static_cast<const tls_channel*>(::gnutls_session_get_ptr(session));
  const tls_credentials::user* const known = self->credentials_.find(name);
  const std::size_t bytes = known == nullptr ? 32 : known->key.size();
  out.data = static_cast<unsigned char*>(::gnutls_malloc(bytes));
  if (out.data == nullptr) return -1;
  out.size = static_cast<unsigned>(bytes);
  if (known != nullptr) {
    std::memcpy(out.data, known->key.data(), bytes);
    return 0;
  }
  return ::gnutls_rnd(GNUTLS_RND_KEY, out.data, bytes) == 0 ? 0 : -1;
}

void tls_channel::copy(std::byte* to, const void* from, std::size_t bytes) noexcept {
  std::memcpy(to, from, bytes);
  if (copied_ != nullptr) copied_->add(static_cast<std::int64_t>(bytes));
}

// GnuTLS sends: into `out`.
ssize_t tls_channel::push(void* self, const void* data, std::size_t bytes) noexcept {
  auto& c = *static_cast<tls_channel*>(self);
  const std::size_t n = std::min(bytes, out_bytes - c.out_end_);
  if (n == 0) {
    ::gnutls_transport_set_errno(c.session_, EAGAIN);
    return -1;
  }
  c.copy(c.out_ + c.out_end_, data, n);
  c.out_end_ += n;
  return static_cast<ssize_t>(n);
}

// GnuTLS receives: from `in`.
ssize_t tls_channel::pull(void* self, void* data, std::size_t bytes) noexcept {
  auto& c = *static_cast<tls_channel*>(self);
  const std::size_t n = std::min(bytes, c.in_end_ - c.in_start_);
  if (n == 0) {
    ::gnutls_transport_set_errno(c.session_, EAGAIN);
    return -1;
  }
  c.copy(static_cast<std::byte*>(data), c.in_ + c.in_start_, n);
  c.in_start_ += n;
  return static_cast<ssize_t>(n);
}

void tls_channel::received(std::size_t bytes) noexcept {
  FOREBAY_ASSERT(in_start_ == in_end_ && bytes <= in_bytes);
  in_start_ = 0;
  in_end_ = bytes;
}

void tls_channel::sent(std::size_t bytes) noexcept {
  out_start_ += bytes;
  if (out_start_ == out_end_) out_start_ = out_end_ = 0;
}

task<> tls_channel::flush(int fd) {
  while (!unsent().empty()) {
    iovec piece{unsent().data(), unsent().size()};
    mapped_message message;
    if (auto r = message.map(loop::current()->plain(), {&piece, 1}); !r) co_return r;
    const std::int32_t n = co_await loop::io(uring_request::send(fd, message));
    message.unmap();
    if (n == -EINTR || n == -EAGAIN) continue;
    if (n < 0) co_return fail(-n);
    sent(static_cast<std::size_t>(n));
  }
  co_return result<>{};
}

task<> tls_channel::receive(int fd) {
  dma_domain& domain = loop::current()->plain();
  const auto to = domain.map(room(), dma_direction::from_device);
  if (!to) co_return fail(to.error());
  const std::int32_t n =
      co_await loop::io_first(uring_request::receive(fd, std::span<const dma_segment, 1>(&*to, 1)));
  domain.unmap(*to, dma_direction::from_device);
  if (n == -EINTR || n == -EAGAIN) co_return result<>{};
  if (n < 0) co_return fail(-n);
  if (n == 0) co_return fail(errc::end_of_stream);
  received(static_cast<std::size_t>(n));
  co_return result<>{};
}

task<> tls_channel::handshake(int fd) {
  for (;;) {
    const std::size_t left = in_end_ - in_start_;
    const int e = ::gnutls_handshake(session_);
    const bool again = e == GNUTLS_E_AGAIN || e == GNUTLS_E_INTERRUPTED;
    if (e != 0 && !again && ::gnutls_error_is_fatal(e) != 0) {
      problem_ = ::gnutls_strerror(e);
      ::gnutls_alert_send_appropriate(session_, e);
      send_what_goes(fd);
      co_return fail(errc::protocol);
    }
    if (auto r = co_await flush(fd); !r) co_return r;
    if (e == 0) co_return result<>{};
    // In the other direction it was for room, which there is now.
    if (!again || ::gnutls_record_get_direction(session_) != 0) continue;
    if (in_start_ == in_end_) {
      if (auto r = co_await receive(fd); !r) co_return r;
    } else if (in_end_ - in_start_ == left) {
      problem_ = "it takes nothing of what has come";
      co_return fail(errc::protocol);
    }
  }
}

std::int32_t tls_channel::decrypt(std::span<std::byte> into) noexcept {
  for (;;) {
    const std::size_t left = in_end_ - in_start_;
    const ssize_t n = ::gnutls_record_recv(session_, into.data(), into.size());
    if (n >= 0) return static_cast<std::int32_t>(n);
    if (n == GNUTLS_E_AGAIN) {
      if (in_start_ == in_end_) return -EAGAIN;
      // It has read a message for itself, such as an update of the key, and there is more.
      if (in_end_ - in_start_ != left) continue;
    }
    if (n == GNUTLS_E_INTERRUPTED || n == GNUTLS_E_WARNING_ALERT_RECEIVED) continue;
    // Also a wish to negotiate again, which TLS 1.3 does not have any more.
    return -EPROTO;
  }
}

// One record; there is room for it.
std::int32_t tls_channel::encrypt_record(const std::byte* data, std::size_t bytes) noexcept {
  for (;;) {
    const ssize_t n = ::gnutls_record_send(session_, data, bytes);
    if (n == GNUTLS_E_INTERRUPTED) continue;
    return n < 0 ? -EPROTO : static_cast<std::int32_t>(n);
  }
}

std::int32_t tls_channel::encrypt(std::span<const iovec> data) noexcept {
  std::int32_t all = 0;
  std::size_t from = 0;  // in the first of `data`
  while (!data.empty() && out_bytes - out_end_ >= record_bytes + record_overhead_bytes) {
    // What is long enough is encrypted where it is.
    const auto* at = static_cast<const std::byte*>(data.front().iov_base) + from;
    std::size_t bytes = std::min(data.front().iov_len - from, record_bytes);
    if (bytes < record_bytes && data.size() > 1) {
      std::size_t gathered = 0;
      std::size_t skip = from;
      for (const iovec& v : data) {
        const std::size_t n = std::min(v.iov_len - skip, record_bytes - gathered);
        copy(memory_start_ + gathered, static_cast<const std::byte*>(v.iov_base) + skip, n);
        gathered += n;
        skip = 0;
        if (gathered == record_bytes) break;
      }
      at = memory_start_;
      bytes = gathered;
    }
    const std::int32_t n = encrypt_record(at, bytes);
    if (n < 0) return n;
    all += n;
    std::size_t done = from + static_cast<std::size_t>(n);
    while (!data.empty() && done >= data.front().iov_len) {
      done -= data.front().iov_len;
      data = data.subspan(1);
    }
    from = done;
  }
  return all;
}

void tls_channel::send_what_goes(int fd) noexcept {
  iovec piece{unsent().data(), unsent().size()};
  message_header header;
  header.set({&piece, 1});
  if (piece.iov_len == 0) return;
  const std::int32_t n = send_now(fd, header);
  if (n > 0) sent(static_cast<std::size_t>(n));
}

void tls_channel::close(int fd) noexcept {
  if (!unsent().empty()) return;
  ::gnutls_bye(session_, GNUTLS_SHUT_WR);
  send_what_goes(fd);
}

}  // namespace forebay
