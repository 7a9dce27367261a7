// forebay: a caching block server, and the tools that show what its buffers do.

#include "forebay/base/version.h"
#include "tools/forebay/command.h"

int main(int argc, char** argv) {
  using namespace forebay;
  CLI::App app{"A caching block server over its own page cache.", "forebay"};
  app.set_version_flag("--version", fmt::format("forebay {}", version));
  app.require_subcommand(1);
  app.footer("'forebay COMMAND --help' tells more of each; 'man forebay' has all of it.");
  tool::action chosen;
  tool::add_serve(app, chosen);
  tool::add_stat(app, chosen);
  tool::add_top(app, chosen);
  tool::add_tune(app, chosen);
  tool::add_slabs(app, chosen);
  tool::add_replay(app, chosen);
  tool::add_echo(app, chosen);
  tool::add_bench(app, chosen);
  tool::add_capture(app, chosen);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    if (e.get_exit_code() == 0) return app.exit(e);
    std::string line = e.what();
    for (char& c : line) c = c == '\n' ? ' ' : c;
    return tool::complain(fmt::format("{} (forebay --help)", line));
  }
  try {
    return chosen();
  } catch (const std::exception& e) {
    return tool::complain(e.what());
  }
}
