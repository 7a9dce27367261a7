// A file behind a page cache of 16 MiB: writes a line into it, makes the line durable, reads it
// back. Usage: cached_file FILE. The file must exist, and its size be a multiple of 512 bytes.

#include <array>
#include <cstdio>
#include <string_view>

#include "forebay/block/file_device.h"
#include "forebay/cache/address_space.h"

using namespace forebay;

// A failed step ends the task with its error; `space` outlives the task.
static task<> greet(address_space& space) {
  constexpr std::string_view text = "held back by the weir\n";
  const std::uint64_t offset = 1000;  // any byte: the cache reads the block around it if it must
  auto done = co_await space.write(offset, std::as_bytes(std::span(text)));
  if (done) done = co_await space.flush();  // on the medium when this returns
  std::array<std::byte, text.size()> back;
  if (done) done = co_await space.read(offset, back);
  if (done) std::fwrite(back.data(), 1, back.size(), stdout);
  co_return done;
}

int main(int argc, char** argv) {
  if (argc != 2) return std::fputs("usage: cached_file FILE\n", stderr), 2;
  auto cache = page_cache::create({.bytes = 16 << 20});
  auto file = file_device::open(argv[1], {});
  if (!cache || !file) return std::fprintf(stderr, "%s: cannot be opened\n", argv[1]), 1;
  address_space space(**cache, **file, {.block_bytes = (*file)->limits().logical_block_bytes});

  const result<> done = sync_wait(greet(space));
  if (!done) return std::fprintf(stderr, "%s\n", done.error().message().c_str()), 1;
  const page_cache_statistics seen = (*cache)->statistics();
  std::printf("%lu page written, %lu hits\n", seen.pages_written, seen.hits);
}
