// forebay tune: changes a running server; what its cache holds stays.

#include <optional>
#include <string>
#include <vector>

#include "forebay/cache/eviction.h"
#include "tools/forebay/command.h"
#include "tools/forebay/statistics_client.h"

namespace forebay::tool {
namespace {

struct tune_options {
  std::string where;
  std::optional<std::uint64_t> cache_bytes;
  std::optional<std::uint64_t> dirty_limit_bytes;
  std::string eviction;
  std::vector<std::string> limits;
  std::optional<std::string> resized;
};

int tune(const tune_options& o) {
  std::string changes;
  if (o.cache_bytes) changes += fmt::format("cache={}\n", *o.cache_bytes);
  if (!o.eviction.empty()) changes += fmt::format("eviction={}\n", o.eviction);
  if (o.dirty_limit_bytes) changes += fmt::format("dirty-limit={}\n", *o.dirty_limit_bytes);
  for (const std::string& limit : o.limits) changes += fmt::format("limit={}\n", limit);
  if (o.resized) changes += fmt::format("resize={}\n", *o.resized);
  if (changes.empty()) {
    return complain(
        "nothing to change; name a --cache, --eviction, --dirty-limit, --limit or --resize");
  }
  const std::string problem = tune_server(o.where, changes);
  return problem.empty() ? 0 : complain(problem);
}

}  // namespace

void add_tune(CLI::App& app, action& chosen) {
  auto o = std::make_shared<tune_options>();
  CLI::App* c = app.add_subcommand(
      "tune", "Change a running server: its cache, which keeps what it holds, and its limits");
  c->add_option("SOCKET", o->where, "The server's unix socket")->required();
  c->add_option("--cache", o->cache_bytes,
                "Size of the cache from now on, up to what the server's --cache-max has reserved")
      ->transform(CLI::AsSizeValue(false));
  c->add_option("--eviction", o->eviction,
                fmt::format("Which pages leave the cache first: {}", eviction_policy_names))
      ->type_name("POLICY");
  c->add_option("--dirty-limit", o->dirty_limit_bytes,
                "How much may wait to be written, below 2/5 of the cache; 0 for just that")
      ->transform(CLI::AsSizeValue(false));
  c->add_option("--limit", o->limits,
                "What all clients of an export together may ask for, and what it may have of the "
                "cache, from now on, as disk.img:iops=5000,bytes=20M,burst=0.1,memory=1G; 0 for "
                "any; what is not named stays")
      ->type_name("[EXPORT:]LIMITS")
      ->allow_extra_args(false);
  c->add_option("--resize", o->resized,
                "Serve an image that has grown at its new size: that of the export, or of all")
      ->type_name("[EXPORT]")
      ->expected(0, 1)
      ->default_str("");
  c->footer("Only the server's user and root may. All changes are made, or none.");
  c->callback([o, &chosen] { chosen = [o] { return tune(*o); }; });
}

}  // namespace forebay::tool
