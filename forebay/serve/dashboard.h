// What `forebay serve --http` shows of a server:
//
//   /          the dashboard: one page that takes nothing from elsewhere and asks for the next two
//   /stats     all statistics, as JSON
//   /history   the last ten minutes by seconds, as JSON; ?after=N: only rows above that number
//   /metrics   for Prometheus
//
// Everything is read-only, and there is no way to ask who asks: who can reach the address can read
// it. Names of exports and figures are there to be seen, no data of images.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "forebay/serve/http_server.h"

namespace forebay {

class server;

class dashboard {
 public:
  // `of` runs until this has gone. `host`: a name, beside localhost and addresses, that browsers
  // may know it by. Errors: as http_server::start().
  static result<std::unique_ptr<dashboard>> start(server& of, std::vector<unique_fd> sockets,
                                                  const std::string& host,
                                                  http_server::options opts = {});
  ~dashboard();

  http_statistics statistics() const noexcept;

 private:
  class pages;
  dashboard(std::unique_ptr<pages> p, std::unique_ptr<http_server> http) noexcept;

  // In this order: the thread of http_ calls pages_.
  const std::unique_ptr<pages> pages_;
  const std::unique_ptr<http_server> http_;
};

}  // namespace forebay
