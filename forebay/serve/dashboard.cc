#include "forebay/serve/dashboard.h"

#include <fmt/format.h>

#include <charconv>
#include <nlohmann/json.hpp>
#include <random>

#include "forebay/serve/dashboard_html.h"
#include "forebay/serve/metrics.h"
#include "forebay/serve/server_statistics.h"
#include "forebay/serve/statistics_history.h"

namespace forebay {
namespace {

constexpr const char* json_type = "application/json";

// The page with a number in it that only this answer has, which its one script and its one style
// sheet show to be let run.
http_response first_page() {
  constexpr std::string_view mark = "NONCE";
  // Of the kernel: what it takes by default, the processor's own, may have nothing just now.
  std::random_device random("getentropy");
  const std::string nonce =
      fmt::format("{:08x}{:08x}{:08x}{:08x}", random(), random(), random(), random());
  std::string html(dashboard_html);
  for (std::size_t at = html.find(mark); at != std::string::npos; at = html.find(mark, at)) {
    html.replace(at, mark.size(), nonce);
  }
  return {std::move(html), "text/html; charset=utf-8",
          fmt::format("default-src 'none'; script-src 'nonce-{0}'; style-src 'nonce-{0}'; "
                      "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
                      "frame-ancestors 'none'",
                      nonce)};
}

}  // namespace

// Used by the HTTP thread, but for http_, which is set before it has a page to answer with.
class dashboard::pages {
 public:
  explicit pages(server& of) : server_(of), history_(of) {}

  void tick() { history_.take(); }

  std::optional<http_response> answer(const http_request& r) {
    if (r.path == "/") return first_page();
    if (r.path == "/stats") return http_response{text_of_json(statistics_of(server_)), json_type};
    if (r.path == "/metrics") {
      return http_response{metrics_text(statistics_of(server_)), metrics_content_type};
    }
    if (r.path == "/history") {
      std::uint64_t after = 0;
      if (const auto text = r.argument("after"); text) {
        std::from_chars(text->data(), text->data() + text->size(), after);
      }
      return http_response{history_.text(after), json_type};
    }
    return std::nullopt;
  }

 private:
  server& server_;
  statistics_history history_;
};

dashboard::dashboard(std::unique_ptr<pages> p, std::unique_ptr<http_server> http) noexcept
    : pages_(std::move(p)), http_(std::move(http)) {}
dashboard::~dashboard() = default;
http_statistics dashboard::statistics() const noexcept { return http_->statistics(); }

result<std::unique_ptr<dashboard>> dashboard::start(server& of, std::vector<unique_fd> sockets,
                                                    const std::string& host,
                                                    http_server::options opts) {
  auto p = std::make_unique<pages>(of);
  if (!host.empty()) opts.names.push_back(host);
  auto http = http_server::start(
      std::move(sockets), std::move(opts),
      [pages = p.get()](const http_request& r) { return pages->answer(r); },
      [pages = p.get()] { pages->tick(); });
  if (!http) return fail(http.error());
  return std::unique_ptr<dashboard>(new dashboard(std::move(p), std::move(*http)));
}

}  // namespace forebay
