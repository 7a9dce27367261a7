// ring_forebay: the one-to-one and the many-to-many ring.
#include "bench/ring/program.h"
#include "forebay/base/version.h"
#include "tools/forebay/piped_rings.h"

int main(int argc, char** argv) {
  using namespace forebay;
  auto spsc = spsc_ring<void*>::create(tool::pipe_capacity);
  auto mpmc = mpmc_ring<void*>::create(tool::pipe_capacity);
  if (!spsc || !mpmc) {
    std::fprintf(stderr, "ring_forebay: no memory\n");
    return 1;
  }
  return bench::run_program(argc, argv, "Forebay " + std::string(version),
                            {bench::subject<tool::piped_spsc>("spsc", std::move(*spsc)),
                             bench::subject<tool::piped_mpmc>("mpmc", std::move(*mpmc))});
}
