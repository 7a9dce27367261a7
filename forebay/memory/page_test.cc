// One thread: not in the thread sanitizer's tree.

#include "forebay/memory/page.h"

#include <gtest/gtest.h>

#include <memory>
#include <type_traits>
#include <utility>

#include "forebay/memory/arena.h"

namespace forebay {
namespace {

static_assert(!std::is_copy_constructible_v<page_ref> && !std::is_copy_assignable_v<page_ref>);
static_assert(std::is_nothrow_move_constructible_v<page_ref>);
static_assert(std::is_standard_layout_v<page>, "the list finds the frame from its node");

class PageRef : public testing::Test {
 protected:
  void SetUp() override {
    auto made = arena::create({.bytes = arena::min_bytes, .huge_pages = false});
    ASSERT_TRUE(made);
    memory = std::move(*made);
    total = memory->page_count();
  }

  page_ref allocate() { return page_ref::adopt(*memory->allocate()); }

  std::unique_ptr<arena> memory;
  std::uint32_t total = 0;
};

TEST_F(PageRef, GivesItsReferenceBack) {
  {
    const page_ref pin = allocate();
    EXPECT_TRUE(pin);
    EXPECT_EQ(pin->refs().value(), 1u);
    EXPECT_EQ(memory->free_pages(), total - 1);
  }
  EXPECT_EQ(memory->free_pages(), total);
}

TEST_F(PageRef, SharingIsASecondReference) {
  page_ref first = allocate();
  page_ref second = first.share();
  EXPECT_EQ(first.get(), second.get());
  EXPECT_EQ(first->refs().value(), 2u);
  first.reset();
  EXPECT_FALSE(first);
  EXPECT_EQ(second->refs().value(), 1u);
  EXPECT_EQ(memory->free_pages(), total - 1) << "still pinned";
  second.reset();
  second.reset();
  EXPECT_EQ(memory->free_pages(), total);
}

TEST_F(PageRef, MovingTakesTheReferenceAlong) {
  page_ref a = allocate();
  page* const p = a.get();
  page_ref b = std::move(a);
  EXPECT_EQ(a.get(), nullptr);  // NOLINT(bugprone-use-after-move): that is the question
  EXPECT_EQ(b.get(), p);
  EXPECT_EQ(p->refs().value(), 1u);

  page_ref c = allocate();
  c = std::move(b);  // gives its own page back
  EXPECT_EQ(c.get(), p);
  EXPECT_EQ(memory->free_pages(), total - 1);

  page_ref& same = c;
  c = std::move(same);
  EXPECT_EQ(c.get(), p) << "moving a pin onto itself keeps it";
  EXPECT_EQ(p->refs().value(), 1u);
  c = page_ref();
  EXPECT_EQ(memory->free_pages(), total);
}

TEST_F(PageRef, ReleaseLeavesTheReferenceToTheCaller) {
  page_ref a = allocate();
  page* const p = a.release();
  EXPECT_FALSE(a);
  EXPECT_EQ(p->refs().value(), 1u);
  put_page(*p);
  EXPECT_EQ(memory->free_pages(), total);
}

TEST_F(PageRef, APinnedBlockGoesBackAsAWhole) {
  {
    const page_ref block = page_ref::adopt(*memory->allocate(3));
    const page_ref other = block.share();
    EXPECT_EQ(memory->free_pages(), total - 8);
  }
  EXPECT_EQ(memory->free_pages(), total);
}

TEST_F(PageRef, FlagsReturnWhatTheyWere) {
  const page_ref pin = allocate();
  EXPECT_EQ(pin->set(page_locked | page_dirty), 0u);
  EXPECT_TRUE(pin->test(page_dirty));
  EXPECT_TRUE(pin->test(page_dirty | page_error)) << "any of them";
  EXPECT_FALSE(pin->test(page_error));
  EXPECT_EQ(pin->set(page_locked), page_locked | page_dirty);
  EXPECT_EQ(pin->clear(page_locked), page_locked | page_dirty);
  EXPECT_EQ(pin->clear(page_locked), page_dirty);
  EXPECT_EQ(pin->flags.load(), page_dirty);
}

}  // namespace
}  // namespace forebay
