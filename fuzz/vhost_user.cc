// What a vhost-user front-end can say, by libFuzzer:
//
//   cmake --preset asan && cmake --build --preset asan --target fuzz_programs
//   build/asan/fuzz/vhost_user -max_len=4096 -max_total_time=60
//
// The server must end each connection, and serve the next. The tests run a short part as well.
#include <stdlib.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include "forebay/block/memory_device.h"
#include "forebay/serve/server.h"
#include "forebay/serve/test_front_end.h"

namespace {

// A server of a disk in memory. It is never stopped: libFuzzer ends the process.
std::string start_server() {
  std::string directory = "/tmp/forebay-fuzz-XXXXXX";
  FOREBAY_ASSERT(::mkdtemp(directory.data()) != nullptr);
  const std::string path = directory + "/socket";
  auto made = forebay::server::create({.cache_bytes = 8u << 20, .huge_pages = false});
  FOREBAY_ASSERT(made.has_value());
  static std::unique_ptr<forebay::server> running = std::move(*made);
  forebay::export_options opts;
  opts.name = "disk";
  FOREBAY_ASSERT(
      running->add_export(std::make_unique<forebay::memory_device>(1u << 20), opts).has_value());
  auto socket = forebay::listen_unix(path);
  FOREBAY_ASSERT(socket.has_value());
  FOREBAY_ASSERT(running->add_vhost_listener("", std::move(*socket)).has_value());
  FOREBAY_ASSERT(running->start().has_value());
  std::atexit([] { static_cast<void>(running->shutdown()); });
  return path;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const std::string path = start_server();
  forebay::play_front_end(path, {data, size});
  return 0;
}
