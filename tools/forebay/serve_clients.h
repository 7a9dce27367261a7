// Of `forebay serve`: which clients are served, by TLS or not, how many, for how long,
// what they are told and what they may ask for.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "forebay/os/fd.h"
#include "forebay/serve/server.h"
#include "tools/forebay/command.h"

namespace forebay::tool {

struct client_options {
  std::string tls;  // "": require it if there is something to do it with
  tls_credentials::sources tls_sources;
  bool insecure = false;
  unsigned max_clients = server_options().max_clients;
  double handshake_timeout_s = 30;
  double send_timeout_s = 60;
  double idle_timeout_s = 0;
  std::vector<std::string> limits;        // of exports (serve/export_limits.h)
  std::vector<std::string> descriptions;  // of the first images

  // Whether there is something to do TLS with.
  bool has_sources() const;
  // With certificates or keys and nothing said, clients must use it.
  tls_policy policy() const;
};

// Adds the options of these names.
void add_client_options(CLI::App& to, client_options& o);

// What is wrong with the text that an option has clients told, in a line for the user.
std::optional<std::string> check_text(std::string_view option, const std::string& text);

// What is wrong with them, in a line for the user, where so many images are served.
std::optional<std::string> check_client_options(const client_options& o, std::size_t images);

// Sets a server's options by them. The credentials are to live as long as the server. The error is
// a line for the user.
std::optional<std::string> settle_clients(const client_options& o, server_options& of,
                                          std::unique_ptr<tls_credentials>& credentials);

// Limits the exports, all of which have been added. The error is a line for the user.
std::optional<std::string> settle_limits(const client_options& o, server& of);

// Whether one of the listening sockets can be reached from other machines without TLS, though
// nobody said that this is meant; `listen` is their address, "" if they were handed over. In a line
// for the user.
std::optional<std::string> check_reach(const client_options& o, const std::string& listen,
                                       std::span<const unique_fd> sockets);

}  // namespace forebay::tool
