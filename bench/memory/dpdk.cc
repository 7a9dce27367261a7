// memory_dpdk: rte_mempool with a cache of 512 objects for each lcore, and rte_stack.
//
// The EAL runs inside this process, without huge pages, devices or files. The two threads are
// registered as lcores, because only an lcore has a mempool cache.
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_lcore.h>
#include <rte_mempool.h>
#include <rte_memzone.h>
#include <rte_stack.h>
#include <rte_version.h>

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "bench/memory/program.h"

namespace forebay::bench {
namespace {

constexpr unsigned object_count = 16383;  // one less than a power of two suits its ring
constexpr unsigned cache_objects = 512;

class mempool_subject {
 public:
  using item = void*;
  // Takes the pool over.
  explicit mempool_subject(rte_mempool* pool) noexcept : pool_(pool) {}
  ~mempool_subject() { rte_mempool_free(pool_); }
  mempool_subject(const mempool_subject&) = delete;
  mempool_subject& operator=(const mempool_subject&) = delete;

  item allocate() noexcept {
    void* object = nullptr;
    return rte_mempool_get(pool_, &object) == 0 ? object : nullptr;
  }
  void free(item i) noexcept { rte_mempool_put(pool_, i); }
  static bool is_none(item i) noexcept { return i == nullptr; }
  bool allocate_bulk(std::span<item> items) noexcept {
    return rte_mempool_get_bulk(pool_, items.data(), static_cast<unsigned>(items.size())) == 0;
  }
  void free_bulk(std::span<item> items) noexcept {
    rte_mempool_put_bulk(pool_, items.data(), static_cast<unsigned>(items.size()));
  }

  // All memory that another pool of `count` objects takes, its ring and caches included.
  static std::optional<double> overhead(std::size_t bytes, std::size_t count) {
    const std::size_t before = reserved_bytes();
    rte_mempool* const pool = create(bytes, static_cast<unsigned>(count), "overhead");
    if (pool == nullptr) return std::nullopt;
    const auto used = static_cast<double>(reserved_bytes() - before);
    rte_mempool_free(pool);
    return used / static_cast<double>(count) - static_cast<double>(bytes);
  }

  static rte_mempool* create(std::size_t bytes, unsigned count, const std::string& name) {
    return rte_mempool_create(name.c_str(), count, static_cast<unsigned>(bytes), cache_objects, 0,
                              nullptr, nullptr, nullptr, nullptr, SOCKET_ID_ANY,
                              RTE_MEMPOOL_F_NO_IOVA_CONTIG);
  }

 private:
  static std::size_t reserved_bytes() {
    std::size_t sum = 0;
    rte_memzone_walk([](const rte_memzone* zone,
                        void* total) { *static_cast<std::size_t*>(total) += zone->len; },
                     &sum);
    return sum;
  }

  rte_mempool* const pool_;
};

// Filled with the addresses of numbers, which nobody looks at.
class stack_subject {
 public:
  using item = void*;
  // Takes the stack over.
  explicit stack_subject(rte_stack* stack) : stack_(stack), objects_(object_count) {
    for (std::uint32_t& o : objects_) free(&o);
  }
  ~stack_subject() { rte_stack_free(stack_); }
  stack_subject(const stack_subject&) = delete;
  stack_subject& operator=(const stack_subject&) = delete;

  item allocate() noexcept {
    void* object = nullptr;
    return rte_stack_pop(stack_, &object, 1) == 1 ? object : nullptr;
  }
  void free(item i) noexcept { rte_stack_push(stack_, &i, 1); }
  static bool is_none(item i) noexcept { return i == nullptr; }
  bool allocate_bulk(std::span<item> items) noexcept {
    return rte_stack_pop(stack_, items.data(), static_cast<unsigned>(items.size())) != 0;
  }
  void free_bulk(std::span<item> items) noexcept {
    rte_stack_push(stack_, items.data(), static_cast<unsigned>(items.size()));
  }

 private:
  rte_stack* const stack_;
  std::vector<std::uint32_t> objects_;
};

made_subject make_mempool(std::size_t bytes) {
  rte_mempool* const pool =
      mempool_subject::create(bytes, object_count, "pool" + std::to_string(bytes));
  if (pool == nullptr) return std::unexpected(rte_strerror(rte_errno));
  return std::make_unique<subject_runner<mempool_subject>>(pool);
}

template <std::uint32_t Flags>
made_subject make_stack(std::size_t bytes) {
  const std::string name = (Flags != 0 ? "lf" : "locked") + std::to_string(bytes);
  rte_stack* const stack = rte_stack_create(name.c_str(), object_count, SOCKET_ID_ANY, Flags);
  if (stack == nullptr) return std::unexpected(rte_strerror(rte_errno));
  return std::make_unique<subject_runner<stack_subject>>(stack);
}

std::string start_eal() {
  std::array<std::string, 9> words{"memory_dpdk",
                                   "--no-huge",
                                   "-m",
                                   "256",
                                   "--no-shconf",
                                   "--no-pci",
                                   "--no-telemetry",
                                   "--log-level=error",
                                   "--iova-mode=va"};
  std::array<char*, words.size() + 1> arguments{};
  for (std::size_t i = 0; i < words.size(); ++i) arguments[i] = words[i].data();
  if (rte_eal_init(words.size(), arguments.data()) < 0) return rte_strerror(rte_errno);
  return {};
}

std::string register_thread() {
  return rte_thread_register() == 0 ? std::string() : rte_strerror(rte_errno);
}

}  // namespace
}  // namespace forebay::bench

int main(int argc, char** argv) {
  using namespace forebay::bench;
  const std::string failure = start_eal();
  if (!failure.empty()) {
    std::fprintf(stderr, "memory_dpdk: EAL: %s\n", failure.c_str());
    return 1;
  }
  return run_program(argc, argv,
                     {.name = "DPDK",
                      .about = [] { return std::string(rte_version()); },
                      .subjects = {{.name = "mempool", .make = make_mempool},
                                   {.name = "stack", .make = make_stack<0>},
                                   {.name = "lf_stack", .make = make_stack<RTE_STACK_F_LF>}},
                      .on_thread_start = register_thread});
}
