// memory_glibc, memory_jemalloc, memory_tcmalloc, memory_mimalloc: the same source, linked with the
// library whose malloc replaces the C library's.
#include <dlfcn.h>

#include <cstdlib>
#include <memory>
#include <string>

#include "bench/memory/program.h"

namespace forebay::bench {
namespace {

class malloc_subject : public bulk_by_singles<malloc_subject> {
 public:
  using item = void*;
  explicit malloc_subject(std::size_t bytes) noexcept : bytes_(bytes) {}

  item allocate() noexcept { return std::malloc(bytes_); }
  void free(item i) noexcept { std::free(i); }
  static bool is_none(item i) noexcept { return i == nullptr; }

 private:
  const std::size_t bytes_;
};

// The file that malloc comes from: proof of what is measured.
std::string library() {
  Dl_info info{};
  void* const where = dlsym(RTLD_DEFAULT, "malloc");
  if (where == nullptr || dladdr(where, &info) == 0) return "unknown";
  return info.dli_fname;
}

made_subject make(std::size_t bytes) {
  return std::make_unique<subject_runner<malloc_subject>>(bytes);
}

}  // namespace
}  // namespace forebay::bench

int main(int argc, char** argv) {
  using namespace forebay::bench;
  return run_program(
      argc, argv,
      {.name = "malloc", .about = library, .subjects = {{.name = "malloc", .make = make}}});
}
