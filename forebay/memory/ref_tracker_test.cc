#include "forebay/memory/ref_tracker.h"

#include <fmt/core.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <thread>
#include <vector>

#include "forebay/base/refcount.h"
#include "forebay/memory/arena.h"

namespace forebay {

// Holders with names that a report can show.
[[gnu::noinline]] ref_ticket first_kind_of_holder(ref_tracker& tracker, const void* object) {
  const ref_ticket ticket = tracker.acquire(object);
  asm volatile("" ::: "memory");
  return ticket;
}
[[gnu::noinline]] ref_ticket second_kind_of_holder(ref_tracker& tracker, const void* object) {
  const ref_ticket ticket = tracker.acquire(object);
  asm volatile("" ::: "memory");
  return ticket;
}
[[gnu::noinline]] bool give_back_here(ref_tracker& tracker, ref_ticket ticket) {
  const bool first = tracker.release(ticket);
  asm volatile("" ::: "memory");
  return first;
}

namespace {

using testing::HasSubstr;
using testing::Not;

// Sets FOREBAY_REF_DEBUG, or takes it away, for one scope.
class scoped_environment {
 public:
  explicit scoped_environment(const char* value) {
    if (const char* old = std::getenv(name)) old_ = old, had_ = true;
    set(value);
  }
  ~scoped_environment() { set(had_ ? old_.c_str() : nullptr); }
  scoped_environment(const scoped_environment&) = delete;
  scoped_environment& operator=(const scoped_environment&) = delete;

 private:
  static constexpr const char* name = "FOREBAY_REF_DEBUG";
  static void set(const char* value) {
    if (value == nullptr)
      ::unsetenv(name);
    else
      ::setenv(name, value, 1);
  }
  std::string old_;
  bool had_ = false;
};

// A tracker that is on, whatever the environment says.
struct tracking : ref_tracker {
  explicit tracking(options opts = {}) : ref_tracker("things", opts) { enable(); }
};

// What is printed to standard error while `f` runs.
template <typename F>
std::string printed(F f) {
  testing::internal::CaptureStderr();
  f();
  return testing::internal::GetCapturedStderr();
}

TEST(RefTracker, IsOffUnlessAskedFor) {
  const scoped_environment none(nullptr);
  ref_tracker tracker("things");
  EXPECT_FALSE(tracker.enabled());
  const ref_ticket ticket = tracker.acquire(&tracker);
  EXPECT_FALSE(ticket);
  EXPECT_EQ(tracker.report(), "");
  EXPECT_EQ(tracker.statistics().bytes, 0u);
  EXPECT_TRUE(tracker.release(ticket));
  EXPECT_TRUE(tracker.release(ticket)) << "an empty ticket stands for nobody";
}

TEST(RefTracker, TheEnvironmentSwitchesItOn) {
  const struct {
    const char* value;
    bool on;
  } cases[] = {{"1", true},        {"all", true},     {"things", true}, {"a,things", true},
               {"things,b", true}, {",things", true}, {"thing", false}, {"thingsx", false},
               {"", false},        {",", false},      {"0", false},     {"a,b", false}};
  for (const auto& c : cases) {
    const scoped_environment value(c.value);
    EXPECT_EQ(ref_tracker("things").enabled(), c.on) << c.value;
  }
}

TEST(RefTracker, NamesTheHoldersThatAreStillThere) {
  tracking tracker;
  int object = 0;
  const ref_ticket gone = second_kind_of_holder(tracker, &object);
  const ref_ticket left = first_kind_of_holder(tracker, &object);
  EXPECT_TRUE(give_back_here(tracker, gone));
  const std::string text = tracker.report();
  EXPECT_THAT(text, HasSubstr("references of \"things\": 1 still held"));
  EXPECT_THAT(text, HasSubstr("#0 forebay::first_kind_of_holder(forebay::ref_tracker&"));
  EXPECT_THAT(text, HasSubstr("NamesTheHoldersThatAreStillThere")) << "this test's own body";
  EXPECT_THAT(text, HasSubstr(fmt::format("object {}", static_cast<void*>(&object))));
  EXPECT_THAT(text, Not(HasSubstr("second_kind_of_holder")));
  EXPECT_TRUE(give_back_here(tracker, left));
  EXPECT_EQ(tracker.report(), "");
}

TEST(RefTracker, GroupsHoldersByPlaceTheLargestFirst) {
  tracking tracker;
  std::array<int, 6> objects{};
  std::vector<ref_ticket> tickets{first_kind_of_holder(tracker, &objects[0])};
  for (int i = 1; i < 6; ++i) tickets.push_back(second_kind_of_holder(tracker, &objects[i]));
  const std::string text = tracker.report();
  const std::size_t larger = text.find("5 of 6 acquired at (object ");
  const std::size_t smaller = text.find("1 of 6 acquired at (object ");
  ASSERT_NE(larger, std::string::npos) << text;
  ASSERT_NE(smaller, std::string::npos) << text;
  EXPECT_LT(larger, smaller);
  EXPECT_THAT(text, HasSubstr(", ...)")) << "not every object of a group is listed";
  EXPECT_THAT(tracker.report(nullptr, 1), HasSubstr("1 of 6 at other places"));
  EXPECT_THAT(tracker.report(nullptr, 1), Not(HasSubstr("first_kind_of_holder")));
  const std::string of_one = tracker.report(&objects[3]);
  EXPECT_THAT(of_one, HasSubstr(": 1 still held"));
  EXPECT_THAT(of_one, Not(HasSubstr("first_kind_of_holder")));
  EXPECT_EQ(tracker.statistics().stacks, 2u) << "a stack is kept once";
  for (const ref_ticket t : tickets) EXPECT_TRUE(tracker.release(t));
}

TEST(RefTracker, ADoubleReleaseIsShownWithAllThreeStacks) {
  tracking tracker;
  const ref_ticket ticket = first_kind_of_holder(tracker, nullptr);
  EXPECT_TRUE(give_back_here(tracker, ticket));
  const std::string text = printed([&] { EXPECT_FALSE(tracker.release(ticket)); });
  EXPECT_THAT(text, HasSubstr("\"things\""));
  EXPECT_THAT(text, HasSubstr("a second time"));
  const std::size_t acquired = text.find("first_kind_of_holder");
  const std::size_t released = text.find("give_back_here");
  const std::size_t again = text.find("released again at");
  ASSERT_NE(again, std::string::npos) << text;
  EXPECT_LT(acquired, released);
  EXPECT_LT(released, again);
  EXPECT_NE(text.find("ADoubleReleaseIsShown", again), std::string::npos) << text;
  EXPECT_EQ(tracker.statistics().double_releases, 1u);
  EXPECT_EQ(tracker.statistics().live, 0u);
}

TEST(RefTracker, ADoubleReleaseHurtsNoLaterHolder) {
  tracking tracker({.records_max = 1, .quarantine = 0});
  const ref_ticket old = first_kind_of_holder(tracker, nullptr);
  EXPECT_TRUE(tracker.release(old));
  const ref_ticket newer = second_kind_of_holder(tracker, nullptr);
  EXPECT_EQ(newer.record, old.record) << "there is one record only";
  const std::string text = printed([&] { EXPECT_FALSE(tracker.release(old)); });
  EXPECT_THAT(text, HasSubstr("no longer known"));
  EXPECT_THAT(text, Not(HasSubstr("second_kind_of_holder"))) << "the new holder is innocent";
  EXPECT_EQ(tracker.statistics().live, 1u);
  EXPECT_TRUE(tracker.release(newer));
}

TEST(RefTracker, AReleasedRecordWaitsInQuarantine) {
  tracking tracker({.records_max = 1000, .quarantine = 8});
  const ref_ticket first = tracker.acquire(nullptr);
  tracker.release(first);
  for (int i = 0; i < 8; ++i) {
    const ref_ticket next = tracker.acquire(nullptr);
    EXPECT_NE(next.record, first.record);
    tracker.release(next);
  }
  const ref_ticket reused = tracker.acquire(nullptr);
  EXPECT_EQ(reused.record, first.record);
  EXPECT_NE(reused.generation, first.generation);
  tracker.release(reused);
}

TEST(RefTracker, PrintsOnlyTheFirstDoubleReleases) {
  tracking tracker;
  const ref_ticket ticket = tracker.acquire(nullptr);
  tracker.release(ticket);
  const std::string text = printed([&] {
    for (int i = 0; i < 40; ++i) EXPECT_FALSE(tracker.release(ticket));
  });
  std::size_t reports = 0;
  for (std::size_t at = 0; (at = text.find("a second time", at)) != std::string::npos; ++at) {
    ++reports;
  }
  EXPECT_EQ(reports, 16u);
  EXPECT_EQ(tracker.statistics().double_releases, 40u);
}

TEST(RefTracker, BeyondItsRecordsItCountsAndDoesNotName) {
  tracking tracker({.records_max = 3});
  std::vector<ref_ticket> tickets;
  for (int i = 0; i < 5; ++i) tickets.push_back(tracker.acquire(nullptr));
  EXPECT_EQ(tracker.statistics().live, 3u);
  EXPECT_EQ(tracker.statistics().untracked, 2u);
  EXPECT_THAT(tracker.report(), HasSubstr(": 5 still held"));
  EXPECT_THAT(tracker.report(), HasSubstr("2 of 5 not recorded"));
  for (const ref_ticket t : tickets) EXPECT_TRUE(tracker.release(t));
  EXPECT_EQ(tracker.statistics().untracked, 0u);
  EXPECT_EQ(tracker.report(), "");
}

TEST(RefTracker, BeyondItsStacksItStillCountsHolders) {
  for (const std::uint32_t stacks_max : {0u, 1u}) {
    tracking tracker({.stacks_max = stacks_max});
    const ref_ticket a = first_kind_of_holder(tracker, nullptr);
    const ref_ticket b = second_kind_of_holder(tracker, nullptr);
    EXPECT_THAT(tracker.report(), HasSubstr("(stack not kept)"));
    EXPECT_THAT(tracker.report(), HasSubstr(": 2 still held"));
    EXPECT_TRUE(tracker.release(a));
    EXPECT_TRUE(tracker.release(b));
  }
}

TEST(RefTracker, ItsMemoryIsBounded) {
  tracking tracker({.records_max = 4096, .stacks_max = 64});
  std::vector<ref_ticket> tickets;
  for (int i = 0; i < 5000; ++i) tickets.push_back(tracker.acquire(nullptr));
  EXPECT_LE(tracker.statistics().bytes, 4096u * 32 + 64 * 136 + 4 * sizeof(void*));
  for (const ref_ticket t : tickets) EXPECT_TRUE(tracker.release(t));
}

TEST(RefTracker, CanBeSwitchedWhileReferencesAreOut) {
  const scoped_environment none(nullptr);
  ref_tracker tracker("things");
  const ref_ticket before = tracker.acquire(nullptr);
  tracker.enable();
  const ref_ticket during = tracker.acquire(nullptr);
  tracker.enable(false);
  const ref_ticket after = tracker.acquire(nullptr);
  EXPECT_THAT(tracker.report(), HasSubstr(": 1 still held"));
  EXPECT_TRUE(tracker.release(before));
  EXPECT_TRUE(tracker.release(during));
  EXPECT_TRUE(tracker.release(after));
  EXPECT_EQ(tracker.report(), "");
}

TEST(RefTracker, ReportsTheLeakWhenItGoes) {
  const std::string text = printed([] {
    tracking tracker;
    static_cast<void>(first_kind_of_holder(tracker, nullptr));
  });
  EXPECT_THAT(text, HasSubstr(": 1 still held"));
  EXPECT_THAT(text, HasSubstr("first_kind_of_holder"));
  const std::string clean = printed([] {
    tracking tracker;
    tracker.release(tracker.acquire(nullptr));
  });
  EXPECT_EQ(clean, "");
}

TEST(RefTrackerDeath, ATicketOfAnotherTrackerIsRefused) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  tracking tracker;
  EXPECT_DEATH(tracker.release({.record = 7, .generation = 1}), "another tracker");
}

TEST(RefTracker, ThreadsAcquireReleaseAndReport) {
  tracking tracker({.records_max = 300, .quarantine = 16});
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([&tracker, t] {
      for (int round = 0; round < 20; ++round) {
        std::vector<ref_ticket> mine;
        for (int i = 0; i < 20; ++i) mine.push_back(tracker.acquire(&mine));
        if (t == 0) {
          EXPECT_THAT(tracker.report(&mine), HasSubstr(": 20 still held"));
        }
        for (const ref_ticket ticket : mine) EXPECT_TRUE(tracker.release(ticket));
      }
    });
  }
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(tracker.statistics().live, 0u);
  EXPECT_EQ(tracker.statistics().double_releases, 0u);
}

// --- tracked_ref over real pages -----------------------------------------------------------------

// The pages of one arena and who holds them.
struct tracked_pages {
  static void get(page& p) noexcept { p.refs().get(); }
  static void put(page& p) noexcept { put_page(p); }
  static ref_tracker& tracker(page&) noexcept { return *current; }
  static inline ref_tracker* current = nullptr;
};
using tracked_page_ref = tracked_ref<page, tracked_pages>;

class TrackedRef : public testing::Test {
 protected:
  void SetUp() override {
    auto made = arena::create({.bytes = arena::min_bytes, .huge_pages = false});
    ASSERT_TRUE(made);
    arena_ = std::move(*made);
    tracked_pages::current = &tracker_;
  }

  page* new_page() { return arena_->allocate(); }

  tracking tracker_;
  std::unique_ptr<arena> arena_;
};

// As a function that keeps a pin longer than it should.
[[gnu::noinline]] tracked_page_ref forgetful_user(const tracked_page_ref& pin) {
  tracked_page_ref mine = pin.share();
  asm volatile("" ::: "memory");
  return mine;
}

TEST_F(TrackedRef, EachPinIsAHolderOfItsOwn) {
  page* const p = new_page();
  ASSERT_NE(p, nullptr);
  tracked_page_ref first = tracked_page_ref::adopt(*p);
  tracked_page_ref second = forgetful_user(first);
  EXPECT_EQ(p->refs().value(), 2u);
  EXPECT_EQ(tracker_.statistics().live, 2u);
  first.reset();
  const std::string text = tracker_.report(p);
  EXPECT_THAT(text, HasSubstr(": 1 still held"));
  EXPECT_THAT(text, HasSubstr("forgetful_user"));
  second.reset();
  EXPECT_EQ(p->refs().value(), 0u);
  EXPECT_EQ(tracker_.report(), "");
}

TEST_F(TrackedRef, AMoveLeavesTheRecordAlone) {
  page* const p = new_page();
  tracked_page_ref a = tracked_page_ref::adopt(*p);
  const ref_ticket ticket = a.ticket();
  tracked_page_ref b = std::move(a);
  EXPECT_EQ(b.ticket(), ticket);
  EXPECT_FALSE(a);  // NOLINT(bugprone-use-after-move): a moved-from pin is empty
  tracked_page_ref c = tracked_page_ref::adopt(*new_page());
  c = std::move(b);
  EXPECT_EQ(c.get(), p);
  EXPECT_EQ(tracker_.statistics().live, 1u) << "the page that c had is given back";
}

TEST_F(TrackedRef, ReleaseHandsTheReferenceOver) {
  page* const p = new_page();
  tracked_page_ref pin = tracked_page_ref::adopt(*p);
  EXPECT_EQ(pin.release(), p);
  EXPECT_FALSE(pin);
  EXPECT_EQ(tracker_.statistics().live, 0u);
  EXPECT_EQ(p->refs().value(), 1u);
  put_page(*p);
}

TEST_F(TrackedRef, WorksTheSameWhenTheTrackerIsOff) {
  tracker_.enable(false);
  page* const p = new_page();
  {
    const tracked_page_ref pin = tracked_page_ref::adopt(*p);
    const tracked_page_ref other = pin.share();
    EXPECT_FALSE(other.ticket());
    EXPECT_EQ(p->refs().value(), 2u);
    EXPECT_FALSE(tracked_page_ref().share());
  }
  EXPECT_EQ(p->refs().value(), 0u);
  EXPECT_EQ(tracker_.statistics().bytes, 0u);
}

}  // namespace
}  // namespace forebay
