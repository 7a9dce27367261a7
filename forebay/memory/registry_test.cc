// memory_registry: names, order, and readers beside things that come and go.

#include "forebay/memory/registry.h"

#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <thread>

namespace forebay {
namespace {

class thing final : public registered_memory {
 public:
  static result<std::unique_ptr<thing>> create(memory_registry& registry, std::string name,
                                               memory_statistics s = {}, bool number = false) {
    std::unique_ptr<thing> made(new thing(std::move(name), std::move(s)));
    const auto r = made->enroll(registry, number ? if_taken::number : if_taken::refuse);
    if (!r) return fail(r.error());
    return made;
  }
  ~thing() override {
    withdraw();
    alive_.store(false);
  }

  memory_statistics report() const override {
    EXPECT_TRUE(alive_.load());
    memory_statistics s = statistics_;
    s.name = name();
    return s;
  }

 private:
  thing(std::string name, memory_statistics s)
      : registered_memory(std::move(name)), statistics_(std::move(s)) {}
  memory_statistics statistics_;
  std::atomic<bool> alive_{true};
};

std::vector<std::string> names(const memory_registry& r,
                               memory_order_by order = memory_order_by::name) {
  std::vector<std::string> out;
  for (const memory_statistics& s : r.snapshot(order)) out.push_back(s.name);
  return out;
}

using strings = std::vector<std::string>;

TEST(Registry, ANameStandsForOneThing) {
  memory_registry r;
  auto first = thing::create(r, "b");
  ASSERT_TRUE(first.has_value());
  EXPECT_EQ(thing::create(r, "b").error(), std::error_code(EEXIST, std::generic_category()));
  EXPECT_EQ(thing::create(r, "").error(), std::error_code(EINVAL, std::generic_category()));
  const auto second = thing::create(r, "b", {}, true);
  const auto third = thing::create(r, "b", {}, true);
  EXPECT_EQ((*second)->name(), "b:2");
  EXPECT_EQ((*third)->name(), "b:3");
  const auto other = thing::create(r, "a");
  EXPECT_EQ(names(r), (strings{"a", "b", "b:2", "b:3"}));
  first->reset();
  EXPECT_EQ(names(r), (strings{"a", "b:2", "b:3"}));
  EXPECT_TRUE(thing::create(r, "b").has_value()) << "the name is free again";
  memory_registry another;
  EXPECT_TRUE(thing::create(another, "a").has_value()) << "each registry has its names";
}

TEST(Registry, ASnapshotIsSorted) {
  memory_registry r;
  const auto a = thing::create(r, "a", {.active = 5, .total = 7, .bytes = 1, .failures = 2});
  const auto c = thing::create(r, "c", {.active = 9, .total = 7, .bytes = 2, .failures = 1});
  const auto b = thing::create(r, "b", {.object_bytes = 9, .active = 1, .total = 8, .slabs = 3});
  EXPECT_EQ(names(r), (strings{"a", "b", "c"}));
  EXPECT_EQ(names(r, memory_order_by::active), (strings{"c", "a", "b"}));
  EXPECT_EQ(names(r, memory_order_by::total), (strings{"b", "a", "c"})) << "then by name";
  EXPECT_EQ(names(r, memory_order_by::bytes), (strings{"c", "a", "b"}));
  EXPECT_EQ(names(r, memory_order_by::failures), (strings{"a", "c", "b"}));
  EXPECT_EQ(names(r, memory_order_by::object_bytes), (strings{"b", "a", "c"}));
  EXPECT_EQ(names(r, memory_order_by::slabs), (strings{"b", "a", "c"}));
  EXPECT_EQ(names(r, memory_order_by::cached), (strings{"a", "b", "c"}));
}

TEST(Registry, TheProcessHasOne) {
  const auto t = thing::create(memory_registry::process(), "registry_test");
  bool seen = false;
  for (const memory_statistics& s : memory_snapshot()) seen = seen || s.name == "registry_test";
  EXPECT_TRUE(seen);
}

// thing::report() fails the test when it runs on one that has been destroyed.
TEST(RegistryStress, ReadersSeeNothingThatHasGone) {
  memory_registry r;
  std::atomic<bool> done{false};
  std::thread reader([&] {
    while (!done.load()) {
      for (const memory_statistics& s : r.snapshot()) EXPECT_EQ(s.active, 3u);
      std::this_thread::yield();
    }
  });
  std::thread other([&] {
    for (int i = 0; i < 2'000; ++i) {
      ASSERT_TRUE(thing::create(r, "x", {.active = 3}, true).has_value());
    }
  });
  for (int i = 0; i < 2'000; ++i) {
    ASSERT_TRUE(thing::create(r, "x", {.active = 3}, true).has_value());
  }
  other.join();
  done.store(true);
  reader.join();
  EXPECT_TRUE(r.snapshot().empty());
}

TEST(RegistryDeathTest, NothingStaysBehind) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(
      {
        auto r = std::make_unique<memory_registry>();
        const auto t = thing::create(*r, "left");
        r.reset();
      },
      "list_");
}

}  // namespace
}  // namespace forebay
