#include "tools/forebay/serve_clients.h"

#include "forebay/os/socket.h"

namespace forebay::tool {

bool client_options::has_sources() const {
  return !tls_sources.certificates.empty() || !tls_sources.psk.empty();
}

tls_policy client_options::policy() const {
  if (tls == "off" || (tls.empty() && !has_sources())) return tls_policy::off;
  return tls == "allow" ? tls_policy::allow : tls_policy::require;
}

void add_client_options(CLI::App& to, client_options& o) {
  to.add_option("--tls", o.tls,
                "Whether clients may use TLS, or must: off, allow or require (require with "
                "certificates or keys, off without)")
      ->check(CLI::IsMember({"off", "allow", "require"}));
  to.add_option("--tls-certificates", o.tls_sources.certificates,
                "Where ca-cert.pem, server-cert.pem and server-key.pem are")
      ->type_name("DIR");
  to.add_option("--tls-psk", o.tls_sources.psk, "Clients' names and keys, as of psktool")
      ->type_name("FILE");
  to.add_flag("--tls-verify-peer", o.tls_sources.verify_peer,
              "Demand certificates of clients, signed by the CA of ca-cert.pem");
  to.add_flag("--insecure", o.insecure, "Let --listen be reached from other machines without TLS");
  to.add_option("--max-clients", o.max_clients,
                "More clients at a time are turned away (1024, or less with a small cache)")
      ->type_name("COUNT")
      ->check(CLI::Range(1u, 65536u));
  const auto timeout = [&to](const char* name, double& seconds, double least, const char* help) {
    to.add_option(name, seconds, help)->type_name("SECONDS")->check(CLI::Range(least, 86400.0));
  };
  timeout("--handshake-timeout", o.handshake_timeout_s, 0.1,
          "Drop a client that has not chosen its export by then (30)");
  timeout("--send-timeout", o.send_timeout_s, 0,
          "Drop a client that for so long receives nothing of its replies; 0 for never (60)");
  timeout("--idle-timeout", o.idle_timeout_s, 0,
          "Drop a client that for so long asks for nothing; 0 for never (0)");
  to.add_option("--limit", o.limits,
                "What all clients of an export together may ask for, and what it may have of the "
                "cache, as disk.img:iops=5000,bytes=20M,burst=0.1,memory=1G; without a name of "
                "every export, each by itself")
      ->type_name("[EXPORT:]LIMITS")
      ->allow_extra_args(false);
  to.add_option("--description", o.descriptions,
                "What clients that list the exports are told of the first image (its size and "
                "path); given again, of the next")
      ->type_name("TEXT")
      ->allow_extra_args(false);
}

std::optional<std::string> check_text(std::string_view option, const std::string& text) {
  if (text.size() <= nbd::max_string_bytes) return std::nullopt;
  return fmt::format("{}: longer than the {} bytes that the protocol allows", option,
                     nbd::max_string_bytes);
}

std::optional<std::string> check_client_options(const client_options& o, std::size_t images) {
  if (o.descriptions.size() > images) {
    return "--description: more of them than images; the first is the first image's, and so on";
  }
  for (const std::string& text : o.descriptions) {
    if (auto problem = check_text("--description", text)) return problem;
  }
  if (o.policy() != tls_policy::off && !o.has_sources()) {
    return fmt::format("--tls {}: needs --tls-certificates DIR or --tls-psk FILE", o.tls);
  }
  if (o.tls_sources.verify_peer &&
      (o.tls_sources.certificates.empty() || o.policy() == tls_policy::off)) {
    return "--tls-verify-peer: needs TLS with --tls-certificates DIR, whose ca-cert.pem it "
           "verifies with";
  }
  return std::nullopt;
}

std::optional<std::string> settle_clients(const client_options& o, server_options& of,
                                          std::unique_ptr<tls_credentials>& credentials) {
  const auto nanoseconds = [](double seconds) { return static_cast<std::uint64_t>(seconds * 1e9); };
  of.max_clients = o.max_clients;
  of.connections.handshake_timeout_ns = nanoseconds(o.handshake_timeout_s);
  of.connections.send_timeout_ns = nanoseconds(o.send_timeout_s);
  of.connections.idle_timeout_ns = nanoseconds(o.idle_timeout_s);
  of.connections.tls = o.policy();
  if (of.connections.tls == tls_policy::off) return std::nullopt;
  auto loaded = tls_credentials::load(o.tls_sources);
  if (!loaded) return loaded.error();
  credentials = std::move(*loaded);
  of.connections.credentials = credentials.get();
  return std::nullopt;
}

std::optional<std::string> settle_limits(const client_options& o, server& of) {
  for (const std::string& limit : o.limits) {
    if (std::string problem = of.set_limits(limit); !problem.empty()) {
      return fmt::format("--limit {}: {}", limit, problem);
    }
  }
  return std::nullopt;
}

// Whoever comes by a network is to be known, and what he says to be his.
std::optional<std::string> check_reach(const client_options& o, const std::string& listen,
                                       std::span<const unique_fd> sockets) {
  if (o.insecure || o.policy() == tls_policy::require) return std::nullopt;
  for (const unique_fd& socket : sockets) {
    if (reachable_from_outside(socket.get())) {
      return fmt::format(
          "{}: reachable from other machines, and clients need no TLS: anybody there could read "
          "and change the images; use --tls-certificates or --tls-psk, listen on 127.0.0.1, or say "
          "--insecure",
          listen.empty() ? "socket activation" : "--listen " + listen);
    }
  }
  return std::nullopt;
}

}  // namespace forebay::tool
