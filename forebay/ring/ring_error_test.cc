// One thread: not in the thread sanitizer's tree.

#include "forebay/ring/ring_error.h"

#include <gtest/gtest.h>

#include <set>
#include <string>

#include "forebay/base/result.h"

namespace forebay {
namespace {

TEST(RingError, EachHasAMessageOfItsOwn) {
  const std::string unknown = std::error_code(12345, ring_error_category()).message();
  std::set<std::string> messages;
  for (int i = 1; i <= static_cast<int>(ring_errc::peer_gone); ++i) {
    const std::error_code e = make_error_code(static_cast<ring_errc>(i));
    EXPECT_NE(e.message(), unknown) << i;
    EXPECT_TRUE(messages.insert(e.message()).second) << e.message();
    EXPECT_EQ(to_errno(e), EIO);
  }
  EXPECT_EQ(
      std::error_code(static_cast<int>(ring_errc::peer_gone) + 1, ring_error_category()).message(),
      unknown);
  EXPECT_STREQ(ring_error_category().name(), "ring");
}

TEST(RingError, IsAResultLikeAnyOther) {
  const auto f = []() -> result<int> { return fail(ring_errc::chain_loop); };
  EXPECT_EQ(f().error(), ring_errc::chain_loop);
  EXPECT_NE(f().error(), ring_errc::chain_cut);
}

}  // namespace
}  // namespace forebay
