// One thread: not in the thread sanitizer's tree.

#include "forebay/serve/nbd_protocol.h"

#include <gtest/gtest.h>

#include <cerrno>

namespace forebay::nbd {
namespace {

TEST(NbdProtocol, StoresMostSignificantByteFirst) {
  std::array<std::byte, 8> b{};
  store(b.data(), std::uint64_t{0x0102030405060708});
  for (unsigned i = 0; i < 8; ++i) EXPECT_EQ(b[i], std::byte(i + 1));
  store(b.data() + 1, std::uint16_t{0xabcd});  // not aligned
  EXPECT_EQ(b[1], std::byte{0xab});
  EXPECT_EQ(b[2], std::byte{0xcd});
}

TEST(NbdProtocol, LoadIsTheInverseOfStore) {
  std::array<std::byte, 9> b{};
  for (const std::uint64_t v : {std::uint64_t{0}, std::uint64_t{1}, UINT64_MAX, init_magic}) {
    store(b.data() + 1, v);
    EXPECT_EQ(load<std::uint64_t>(b.data() + 1), v);
    store(b.data() + 1, static_cast<std::uint32_t>(v));
    EXPECT_EQ(load<std::uint32_t>(b.data() + 1), static_cast<std::uint32_t>(v));
  }
  store(b.data(), std::uint8_t{7});
  EXPECT_EQ(load<std::uint8_t>(b.data()), 7);
}

TEST(NbdProtocol, MagicNumbersSpellWhatTheProtocolSays) {
  std::array<std::byte, 16> b{};
  store(b.data(), init_magic);
  store(b.data() + 8, option_magic);
  EXPECT_EQ(std::memcmp(b.data(), "NBDMAGICIHAVEOPT", 16), 0);
}

TEST(NbdProtocol, MessageHoldsItsFieldsInOrder) {
  message<15> m;
  m.put(std::uint32_t{0x01020304}).put(std::uint16_t{0x0506}).put(std::uint8_t{7});
  m.put(std::uint64_t{0x08090a0b0c0d0e0f});
  ASSERT_EQ(m.size(), 15u);
  for (unsigned i = 0; i < 15; ++i) EXPECT_EQ(m.data()[i], std::byte(i + 1));
}

TEST(NbdProtocol, ErrorsThatTheProtocolKnowsPassAndOthersBecomeIt) {
  EXPECT_EQ(wire_error(0), 0u);
  for (const int e : {EPERM, EACCES, EROFS}) EXPECT_EQ(wire_error(e), 1u);
  for (const int e : {EIO, ETIMEDOUT, EBADF, ENODEV, ECONNRESET, 4711}) {
    EXPECT_EQ(wire_error(e), 5u) << e;
  }
  EXPECT_EQ(wire_error(ENOMEM), 12u);
  EXPECT_EQ(wire_error(EINVAL), 22u);
  for (const int e : {ENOSPC, EDQUOT, EFBIG}) EXPECT_EQ(wire_error(e), 28u);
  EXPECT_EQ(wire_error(EOVERFLOW), 75u);
  EXPECT_EQ(wire_error(ENOTSUP), 95u);
  EXPECT_EQ(wire_error(ESHUTDOWN), 108u);
}

TEST(NbdProtocol, EndOfTheLastPossibleRequest) {
  const request r{0, 0, 0, UINT64_MAX - 7, 7, 0};
  EXPECT_EQ(r.end(), UINT64_MAX);
}

}  // namespace
}  // namespace forebay::nbd
