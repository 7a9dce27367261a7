// What --http shows, and what it makes of clients that send rubbish, too much, or hardly anything.

#include "forebay/serve/dashboard.h"

#include <fmt/format.h>
#include <netinet/in.h>

#include <map>
#include <nlohmann/json.hpp>

#include "forebay/serve/server_statistics.h"
#include "forebay/serve/test_server.h"

namespace forebay {
namespace {

using nbd::command;

// A server with a dashboard on a port of 127.0.0.1, and raw HTTP with it.
class watched_server {
 public:
  explicit watched_server(http_server::options opts = {}) {
    disks_.add(named("a \"quoted\\\nname"));
    disks_.add(named("unused"));
    disks_.add(named("caf\xe9 caf\xc3\xa9 \xed\xa0\x80"));  // a Latin-1 name, and a surrogate
    disks_.start();
    auto sockets = listen_tcp("127.0.0.1", 0);
    FOREBAY_ASSERT(sockets.has_value() && sockets->size() == 1);
    sockaddr_in at{};
    socklen_t length = sizeof at;
    FOREBAY_ASSERT(
        ::getsockname(sockets->front().get(), reinterpret_cast<sockaddr*>(&at), &length) == 0);
    port_ = ntohs(at.sin_port);
    auto made = dashboard::start(disks_.get(), std::move(*sockets), "disks.example", opts);
    FOREBAY_ASSERT(made.has_value());
    board_ = std::move(*made);
  }

  test_server& disks() { return disks_; }
  http_statistics statistics() const { return board_->statistics(); }

  unique_fd connect() const {
    return *connect_to({.path = {}, .host = "127.0.0.1", .port = port_});
  }
  // All that comes back for it until the server closes or is silent for some seconds.
  std::string exchange(std::string_view request) const {
    const unique_fd socket = connect();
    static_cast<void>(send_all(socket.get(), to_bytes(request)));
    return rest(socket);
  }
  static std::string rest(const unique_fd& socket) {
    set_receive_timeout(socket.get(), 60'000);
    std::string all;
    char part[4096];
    for (;;) {
      const ssize_t n = ::recv(socket.get(), part, sizeof part, 0);
      // What an io_uring of this thread has left behind may still interrupt it.
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) return all;
      all.append(part, static_cast<std::size_t>(n));
    }
  }
  std::string get(const std::string& path) const {
    return exchange(
        fmt::format("GET {} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", path));
  }

 private:
  test_server disks_;
  std::uint16_t port_ = 0;
  std::unique_ptr<dashboard> board_;
};

std::string body_of(const std::string& answer) {
  const std::size_t at = answer.find("\r\n\r\n");
  return at == std::string::npos ? "" : answer.substr(at + 4);
}

int status_of(const std::string& answer) {
  return answer.starts_with("HTTP/1.1 ") ? std::stoi(answer.substr(9)) : 0;
}

// The value of a sample, named with its labels; -1 if it is not there.
double sample(const std::string& metrics, const std::string& what) {
  const std::size_t at = metrics.find("\n" + what + " ");
  return at == std::string::npos ? -1 : std::stod(metrics.substr(at + what.size() + 2));
}

TEST(dashboard, has_a_page_that_may_load_nothing_from_elsewhere) {
  watched_server w;
  std::string nonces[2];
  for (std::string& nonce : nonces) {
    const std::string answer = w.get("/");
    ASSERT_EQ(status_of(answer), 200)
        << answer.substr(0, 500) << "; refused: " << w.statistics().refused;
    const std::size_t at = answer.find("script-src 'nonce-");
    ASSERT_NE(at, std::string::npos);
    nonce = answer.substr(at + 18, 32);
    const std::string body = body_of(answer);
    EXPECT_NE(body.find("<script nonce=\"" + nonce + "\">"), std::string::npos);
    EXPECT_NE(body.find("<style nonce=\"" + nonce + "\">"), std::string::npos);
    EXPECT_EQ(body.find("NONCE\""), std::string::npos);
    EXPECT_NE(answer.find("default-src 'none'"), std::string::npos);
    EXPECT_EQ(body.find("https://"), std::string::npos);
  }
  EXPECT_NE(nonces[0], nonces[1]);
}

TEST(dashboard, tells_what_the_server_did) {
  watched_server w;
  raw_client c(w.disks());
  ASSERT_TRUE(c.go("a \"quoted\\\nname"));
  for (std::uint64_t i = 0; i < 50; ++i) ASSERT_EQ(c.write(i * 4096, bytes(4096)), 0u);
  for (std::uint64_t i = 0; i < 50; ++i) ASSERT_TRUE(c.read(i * 4096, 4096));
  const std::string metrics = body_of(w.get("/metrics"));
  const std::string of = "{export=\"a \\\"quoted\\\\\\nname\",command=\"read\"";
  EXPECT_EQ(sample(metrics, "forebay_requests_total" + of + "}"), 50);
  EXPECT_EQ(sample(metrics, "forebay_request_bytes_total" + of + "}"), 50 * 4096);
  EXPECT_EQ(sample(metrics, "forebay_request_duration_seconds_count" + of + "}"), 50);
  EXPECT_EQ(sample(metrics, "forebay_request_duration_seconds_bucket" + of + ",le=\"+Inf\"}"), 50);
  EXPECT_GT(sample(metrics, "forebay_request_duration_seconds_sum" + of + "}"), 0);
  EXPECT_EQ(sample(metrics,
                   "forebay_export_copied_bytes_total{export=\"a \\\"quoted\\\\\\nname\","
                   "where=\"write\"}"),
            50 * 4096);
  EXPECT_GE(sample(metrics, "forebay_cache_hits_total"), 50);
  EXPECT_EQ(sample(metrics, "forebay_clients"), 1);
  EXPECT_GE(sample(metrics, "forebay_cache_estimated_miss_ratio{times=\"1\"}"), 0);
  EXPECT_EQ(metrics.find("export=\"unused\",command"), std::string::npos);
  EXPECT_NE(metrics.find("export=\"caf\xef\xbf\xbd caf\xc3\xa9 \xef\xbf\xbd\xef\xbf\xbd\xef"
                         "\xbf\xbd\""),
            std::string::npos);
  // A family once, and its samples together.
  std::map<std::string, int> families;
  for (std::size_t at = 0; (at = metrics.find("# TYPE ", at)) != std::string::npos; ++at) {
    ++families[metrics.substr(at + 7, metrics.find(' ', at + 7) - at - 7)];
  }
  EXPECT_GT(families.size(), 40u);
  for (const auto& [name, times] : families) EXPECT_EQ(times, 1) << name;

  const auto stats = nlohmann::ordered_json::parse(body_of(w.get("/stats")));
  EXPECT_EQ(stats["exports"][0]["commands"]["read"]["count"], 50);
  EXPECT_LE(stats["exports"][0]["dirty_pages"], 50);
  EXPECT_EQ(stats["copied"]["served_bytes"], 100 * 4096);
  EXPECT_EQ(stats["copied"]["where"]["write"], 50 * 4096);
  EXPECT_GE(stats["copied"]["per_byte"], 0.5);
  EXPECT_EQ(stats["exports"][1]["dirty_pages"], 0);
  std::uint64_t counted = 0;
  for (const auto& b : stats["commands"]["write"]["latency_ns"]) counted += b[1].get<unsigned>();
  EXPECT_EQ(counted, 50u);
}

TEST(dashboard, remembers_the_seconds_before_it_is_looked_at) {
  watched_server w({.tick_ms = 100});  // a minute of them is kept
  raw_client c(w.disks());
  ASSERT_TRUE(c.go("unused"));
  ASSERT_EQ(c.write(0, bytes(8192)), 0u);
  nlohmann::ordered_json history;
  double written = 0;
  const auto has_written = [&] {
    history = nlohmann::ordered_json::parse(body_of(w.get("/history")));
    const auto& names = history["columns"];
    const auto column = std::find(names.begin(), names.end(), "write_bytes") - names.begin();
    for (const auto& row : history["rows"]) {
      EXPECT_EQ(row.size(), names.size());
      written += row[static_cast<std::size_t>(column)].get<double>();
    }
    return written != 0;
  };
  EXPECT_TRUE(eventually(has_written));
  EXPECT_EQ(written, 8192);
  const auto last = history["rows"].back()[0].get<std::uint64_t>();
  const auto later =
      nlohmann::ordered_json::parse(body_of(w.get("/history?after=" + std::to_string(last))));
  for (const auto& row : later["rows"]) EXPECT_GT(row[0], last);
  EXPECT_EQ(body_of(w.get("/history?after=99999999")).find("[9"), std::string::npos);
  EXPECT_EQ(status_of(w.get("/history?after=-x&&=%zz")), 200);
}

TEST(dashboard, refuses_what_it_is_not_there_for) {
  watched_server w;
  const std::string host = " HTTP/1.1\r\nHost: 127.0.0.1:80\r\n";
  const std::pair<std::string, int> refused[] = {
      {"GET /nope" + host + "Connection: close\r\n\r\n", 404},
      {"GET /../etc/passwd" + host + "Connection: close\r\n\r\n", 404},
      {"POST /" + host + "Content-Length: 100000000000\r\n\r\n", 405},
      {"PUT /stats" + host + "Transfer-Encoding: chunked\r\n\r\n", 405},
      {"DELETE /" + host + "\r\n", 405},
      {"GET /" + host + "Content-Length: 5\r\n\r\nhello", 400},
      {"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", 403},
      {"GET / HTTP/1.1\r\nHost: disks.example.evil.example:1\r\n\r\n", 403},
      {"GET / HTTP/1.1\r\n\r\n", 400},
  };
  std::uint64_t count = 0;
  for (const auto& [request, status] : refused) {
    EXPECT_EQ(status_of(w.exchange(request)), status) << request;
    ++count;
  }
  // Rubbish ends the connection, with an answer or without.
  std::string rubbish;
  for (int i = 0; i < 5000; ++i) rubbish += static_cast<char>(i * 37 % 251 + 1);
  rubbish += "\r\n\r\n";
  for (const std::string& text :
       {rubbish, std::string("\r\n\r\n\r\n"), "GET /" + std::string(60'000, 'a') + host + "\r\n",
        "GET / HTTP/1.1\r\nHost: localhost\r\nX: " + std::string(60'000, 'b') + "\r\n\r\n",
        std::string("GET\r\n\r\n")}) {
    const unique_fd socket = w.connect();
    static_cast<void>(send_all(socket.get(), to_bytes(text)));
    shutdown_socket(socket.get());
    ++count;
  }
  for (const char* const fine : {"LocalHost:9", "10.0.0.1", "[::1]:80", "Disks.Example"}) {
    EXPECT_EQ(status_of(w.exchange(std::string("GET /stats HTTP/1.1\r\nHost: ") + fine +
                                   "\r\nConnection: close\r\n\r\n")),
              200)
        << fine;
  }
  // An empty line may be no request at all.
  EXPECT_TRUE(eventually([&] { return w.statistics().refused >= count - 1; }));
  EXPECT_TRUE(eventually([&] { return w.statistics().answered >= 4; }));
  EXPECT_EQ(w.statistics().answered, 4u);
  const std::string head =
      w.exchange("HEAD / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
  EXPECT_EQ(status_of(head), 200);
  EXPECT_EQ(body_of(head), "");
}

// Whoever asks and does not take the answer holds memory; all of them no more than is set.
TEST(dashboard, answers_that_nobody_takes_are_bounded) {
  const watched_server small({.bodies_bytes_max = 100});
  EXPECT_EQ(status_of(small.get("/")), 0) << "longer than that: the connection ends";
  EXPECT_EQ(status_of(small.get("/nothing")), 404);
  EXPECT_EQ(status_of(small.get("/nothing")), 404) << "what was sent is none of them any more";
}

TEST(dashboard, slow_clients_lose_their_turn) {
  watched_server w({.connections_max = 4, .request_ms_max = 300, .tick_ms = 20});
  // As many as there may be: half of them silent, half of them dripping.
  std::vector<unique_fd> slow;
  for (int i = 0; i < 4; ++i) slow.push_back(w.connect());
  std::atomic<bool> over{false};
  std::thread drip([&] {
    while (!over) {
      for (std::size_t i = 0; i < 2; ++i) static_cast<void>(send_all(slow[i].get(), to_bytes("G")));
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
  });
  // Their time is up before this one's patience is. It asks again, as it may be slow itself.
  EXPECT_TRUE(eventually([&] { return status_of(w.get("/stats")) == 200; }));
  over = true;
  drip.join();
  EXPECT_GE(w.statistics().refused, 1u);
  for (const unique_fd& socket : slow) {
    set_receive_timeout(socket.get(), 60'000);
    std::array<std::byte, 1> nothing;
    EXPECT_FALSE(receive_all(socket.get(), nothing));
  }
}

TEST(dashboard, says_what_it_cannot_do) {
  test_server s;
  s.add(named("a"));
  s.start();
  EXPECT_EQ(dashboard::start(s.get(), {}, "").error(), std::errc::invalid_argument);
  EXPECT_EQ(miss_ratio_at(nlohmann::ordered_json::array(), 100), 1);
  const auto points = nlohmann::ordered_json::parse("[[100,0.8],[200,0.4]]");
  EXPECT_NEAR(miss_ratio_at(points, 50), 0.9, 1e-9);
  EXPECT_NEAR(miss_ratio_at(points, 150), 0.6, 1e-9);
  EXPECT_NEAR(miss_ratio_at(points, 1e9), 0.4, 1e-9);
}

}  // namespace
}  // namespace forebay
