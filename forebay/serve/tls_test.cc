// TLS: a client of GnuTLS against the server, and files of keys that are none. What real clients
// make of it, and certificates, is tests/tls.py's.

#include "forebay/serve/tls.h"

#include <gnutls/gnutls.h>

#include <cstdio>
#include <fstream>

#include "forebay/serve/test_server.h"

namespace forebay {
namespace {

// A file in the directory for temporary ones, until the end.
class key_file {
 public:
  explicit key_file(const char* text) { std::ofstream(path_) << text; }
  ~key_file() { std::remove(path_.c_str()); }
  key_file(const key_file&) = delete;
  key_file& operator=(const key_file&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_ = ::testing::TempDir() + "/forebay-keys-" + std::to_string(::getpid());
};

// A client that says STARTTLS and what follows it with the key of a user.
class tls_client {
 public:
  tls_client(const test_server& s, const char* user, std::string_view hex_key) : plain_(s) {
    FOREBAY_ASSERT(plain_.greet());
    EXPECT_EQ(plain_.outcome(nbd::option::starttls), nbd::option_reply::ack);
    ::gnutls_psk_allocate_client_credentials(&credentials_);
    std::string key(hex_key);
    const gnutls_datum_t datum{reinterpret_cast<unsigned char*>(key.data()),
                               static_cast<unsigned>(key.size())};
    ::gnutls_psk_set_client_credentials(credentials_, user, &datum, GNUTLS_PSK_KEY_HEX);
    ::gnutls_init(&session_, GNUTLS_CLIENT | GNUTLS_NO_SIGNAL);
    ::gnutls_priority_set_direct(session_, "NORMAL:+ECDHE-PSK", nullptr);
    ::gnutls_credentials_set(session_, GNUTLS_CRD_PSK, credentials_);
    const auto raw = static_cast<std::intptr_t>(plain_.fd());
    ::gnutls_transport_set_ptr2(session_, reinterpret_cast<gnutls_transport_ptr_t>(raw), this);
    ::gnutls_transport_set_push_function(session_, &push);
  }
  ~tls_client() {
    ::gnutls_deinit(session_);
    ::gnutls_psk_free_client_credentials(credentials_);
  }
  tls_client(const tls_client&) = delete;
  tls_client& operator=(const tls_client&) = delete;

  bool shake_hands() {
    int e = 0;
    do e = ::gnutls_handshake(session_);
    while (e < 0 && ::gnutls_error_is_fatal(e) == 0);
    // With TLS 1.3 a client that is refused learns of it by what it receives next.
    return e == 0;
  }

  void send(const wire& what) {
    for (std::span<const std::byte> left = what.data(); !left.empty();) {
      const ssize_t n = ::gnutls_record_send(session_, left.data(), left.size());
      ASSERT_GT(n, 0) << ::gnutls_strerror(static_cast<int>(n));
      left = left.subspan(static_cast<std::size_t>(n));
    }
  }

  // So many bytes; fewer if the connection has ended.
  bytes receive(std::size_t count) {
    bytes all(count);
    std::size_t at = 0;
    while (at < count) {
      const ssize_t n = ::gnutls_record_recv(session_, all.data() + at, count - at);
      // So it ends after what was for GnuTLS itself, as an update of the key.
      if (n < 0 && ::gnutls_error_is_fatal(static_cast<int>(n)) == 0) continue;
      if (n <= 0) break;
      at += static_cast<std::size_t>(n);
    }
    all.resize(at);
    return all;
  }

  // What is sent between these two arrives together.
  void hold() { holding_ = true; }
  void let_go() {
    holding_ = false;
    ASSERT_TRUE(plain_.send(held_));
    held_.clear();
  }

  void update_key() { EXPECT_EQ(::gnutls_session_key_update(session_, GNUTLS_KU_PEER), 0); }

 private:
  static ssize_t push(gnutls_transport_ptr_t self, const void* data, std::size_t count) {
    auto& c = *static_cast<tls_client*>(self);
    const auto* const at = static_cast<const std::byte*>(data);
    if (!c.holding_) return ::send(c.plain_.fd(), data, count, MSG_NOSIGNAL);
    c.held_.insert(c.held_.end(), at, at + count);
    return static_cast<ssize_t>(count);
  }

  raw_client plain_;  // what there is before TLS, and below it
  bool holding_ = false;
  bytes held_;
  gnutls_psk_client_credentials_t credentials_ = nullptr;
  gnutls_session_t session_ = nullptr;
};

constexpr std::string_view alices_key = "00112233445566778899aabbccddeeff";

tls_credentials::sources keys_of(const std::string& file) {
  tls_credentials::sources from;
  from.psk = file;
  return from;
}

struct tls_fixture {
  tls_fixture() {
    auto loaded = tls_credentials::load(keys_of(keys.path()));
    FOREBAY_ASSERT(loaded.has_value());
    credentials = std::move(*loaded);
    server_options o;
    o.connections.tls = tls_policy::allow;
    o.connections.credentials = credentials.get();
    s.emplace(o);
    s->add(named("disk"));
    s->start();
  }
  key_file keys{"\nalice:00112233445566778899aabbccddeeff\r\nbob:ff\n"};
  std::unique_ptr<tls_credentials> credentials;
  std::optional<test_server> s;
};

TEST(tls, data_comes_back_as_it_was_and_so_does_the_memory) {
  tls_fixture f;
  {
    tls_client c(*f.s, "alice", alices_key);
    ASSERT_TRUE(c.shake_hands());
    c.send(nbd_words::option(nbd::option::export_name, to_bytes("disk")));
    ASSERT_EQ(c.receive(10).size(), 10u);
    constexpr std::uint32_t piece = 100'352;  // begins and ends within pages, but for the first
    bytes data(piece);
    for (std::size_t i = 0; i < data.size(); ++i) data[i] = static_cast<std::byte>(i * 7 + i / 251);
    c.send(nbd_words::request(nbd::command::write, 1, 512, piece, 0, data));
    ASSERT_EQ(c.receive(16).size(), 16u);
    // An update of the key, which the server has to answer, with what follows it in one piece.
    c.hold();
    c.update_key();
    // More replies at a time than fit a batch and a channel's buffer.
    constexpr std::uint64_t reads = 24;
    for (std::uint64_t i = 0; i < reads; ++i) {
      c.send(nbd_words::request(nbd::command::read, i, 512, piece));
    }
    c.let_go();
    for (std::uint64_t i = 0; i < reads; ++i) {
      const bytes header = c.receive(16);
      ASSERT_EQ(header.size(), 16u);
      EXPECT_EQ(nbd::load<std::uint32_t>(header.data()), nbd::simple_reply_magic);
      ASSERT_TRUE(c.receive(piece) == data) << i;
    }
    // Into GnuTLS or out of it each byte goes at least once.
    EXPECT_GE(f.s->get().exports().front()->copied(payload_copy::tls).value(),
              (1 + reads) * std::int64_t{piece});
    c.send(nbd_words::request(nbd::command::disconnect, 9));
    EXPECT_EQ(c.receive(1).size(), 0u);
  }
  ASSERT_TRUE(f.s->wait_for_clients(0));
  EXPECT_EQ(f.s->get().memory().statistics().extra_bytes, 0u);
}

TEST(tls, a_wrong_key_and_an_unknown_name_are_refused_and_counted) {
  tls_fixture f;
  for (const char* name : {"alice", "eve"}) {
    tls_client c(*f.s, name, "ee");
    EXPECT_TRUE(!c.shake_hands() || c.receive(1).empty());
  }
  ASSERT_TRUE(f.s->wait_for_clients(0));
  const auto failed = f.s->get().statistics().clients_failed;
  EXPECT_EQ(failed[static_cast<std::size_t>(client_failure::tls)], 2u);
}

TEST(tls, what_is_no_file_of_keys_is_refused_with_its_line) {
  const std::pair<const char*, const char*> cases[] = {{"", "holds no keys"},
                                                       {"\n\n", "holds no keys"},
                                                       {"alice", "line 1"},
                                                       {":00", "line 1"},
                                                       {"alice:", "line 1"},
                                                       {"alice:0", "line 1"},
                                                       {"alice:00\nbob:0g\n", "line 2"},
                                                       {"alice:0:1\n", "line 1"}};
  for (const auto& [text, says] : cases) {
    const key_file keys(text);
    const auto loaded = tls_credentials::load(keys_of(keys.path()));
    ASSERT_FALSE(loaded.has_value()) << text;
    EXPECT_NE(loaded.error().find(says), std::string::npos) << loaded.error();
  }
  EXPECT_FALSE(tls_credentials::load(keys_of("/nonexistent")).has_value());
}

}  // namespace
}  // namespace forebay
