// The pcapng blocks that are written, and the reader of capture files, against each other and
// against what hostile files say.

#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "forebay/net/capture_reader.h"
#include "forebay/net/pcapng.h"

namespace forebay {
namespace {

using bytes = std::vector<std::byte>;

void add(bytes& to, const bytes& what) { to.insert(to.end(), what.begin(), what.end()); }

template <typename T>
void add_number(bytes& to, T value, bool swapped = false) {
  std::array<std::byte, sizeof(T)> raw;
  std::memcpy(raw.data(), &value, sizeof value);
  if (swapped) std::reverse(raw.begin(), raw.end());
  to.insert(to.end(), raw.begin(), raw.end());
}

bytes payload(std::size_t length, unsigned seed) {
  bytes b(length);
  for (std::size_t i = 0; i < length; ++i) b[i] = static_cast<std::byte>(seed * 31 + i);
  return b;
}

bytes packet_block(std::uint64_t stamp_ns, const bytes& data, std::uint32_t wire) {
  bytes b(pcapng::packet_block_bytes(data.size()));
  EXPECT_EQ(pcapng::put_packet(b.data(), stamp_ns, data, wire), b.data() + b.size());
  return b;
}

bytes head() {
  bytes f = pcapng::section_header({.hardware = "", .system = "Linux", .application = "forebay"});
  add(f, pcapng::describe({.snap_bytes = 256, .name = "veth0", .filter = "udp port 53"}));
  return f;
}

class CaptureFile : public testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/forebay-capture-XXXXXX";
    const int fd = ::mkstemp(name);
    ASSERT_GE(fd, 0);
    ::close(fd);
    path_ = name;
  }
  void TearDown() override { ::unlink(path_.c_str()); }

  struct packet {
    bytes data;
    std::uint32_t wire;
    std::uint64_t stamp_ns;
    std::uint16_t link_type;
    std::uint32_t interface;
  };
  // All packets of a file with these contents; an open that fails gives none and an error.
  std::vector<packet> read(const bytes& file) {
    ::unlink(path_.c_str());  // some file systems write back what is overwritten
    std::ofstream(path_, std::ios::binary)
        .write(reinterpret_cast<const char*>(file.data()),
               static_cast<std::streamsize>(file.size()));
    std::vector<packet> all;
    auto reader = capture_reader::open(path_);
    opened_ = reader.has_value();
    if (!opened_) {
      EXPECT_EQ(reader.error(), errc::corrupt);
      return all;
    }
    capture_reader::record r;
    for (;;) {
      const auto more = reader->next(r);
      if (!more || !*more) break;
      all.push_back(
          {{r.data.begin(), r.data.end()}, r.wire_bytes, r.stamp_ns, r.link_type, r.interface});
    }
    seen_ = reader->seen();
    EXPECT_EQ(seen_.packets, all.size());
    return all;
  }

  std::string path_;
  bool opened_ = false;
  capture_reader::counters seen_;
};

TEST_F(CaptureFile, WhatIsWrittenIsReadAgain) {
  bytes file = head();
  const std::uint64_t start = 1'700'000'000'123'456'789;
  for (unsigned i = 0; i < 300; ++i) {
    add(file, packet_block(start + i, payload(i, i), i + i % 2 * 1000));
  }
  add(file, pcapng::report({.start_ns = start,
                            .end_ns = start + 300,
                            .received = 310,
                            .interface_dropped = 3,
                            .accepted = 307,
                            .system_dropped = 7,
                            .delivered = 300}));
  const auto got = read(file);
  ASSERT_EQ(got.size(), 300u);
  for (unsigned i = 0; i < 300; ++i) {
    EXPECT_EQ(got[i].data, payload(i, i));
    EXPECT_EQ(got[i].wire, i + i % 2 * 1000);
    EXPECT_EQ(got[i].stamp_ns, start + i);
    EXPECT_EQ(got[i].link_type, 1u);
  }
  EXPECT_EQ(seen_.interface_drops, 3u);
  EXPECT_EQ(seen_.system_drops, 7u);
  EXPECT_EQ(seen_.skipped + seen_.unreadable + seen_.other_blocks, 0u);
  EXPECT_FALSE(seen_.cut_short || seen_.damaged);
}

TEST_F(CaptureFile, EveryCutIsTheFrontOfTheFile) {
  bytes file = head();
  std::vector<std::size_t> ends;
  for (unsigned i = 0; i < 4; ++i) {
    add(file, packet_block(i, payload(i * 5, i), i * 5));
    ends.push_back(file.size());
  }
  for (std::size_t cut = 0; cut <= file.size(); ++cut) {
    const auto got = read(bytes(file.begin(), file.begin() + static_cast<std::ptrdiff_t>(cut)));
    const auto whole = static_cast<std::size_t>(
        std::count_if(ends.begin(), ends.end(), [cut](std::size_t e) { return e <= cut; }));
    EXPECT_EQ(got.size(), whole) << cut;
    if (!opened_) continue;
    EXPECT_FALSE(seen_.damaged) << cut;
    const bool at_an_end = cut == file.size() || seen_.unreadable == 0;
    EXPECT_EQ(seen_.cut_short, !at_an_end) << cut;
  }
}

TEST_F(CaptureFile, ZerosAllocatedAheadAreNoDamage) {
  const bytes block = packet_block(2, payload(41, 1), 41);
  for (std::size_t cut = 0; cut <= block.size(); ++cut) {
    bytes file = head();
    add(file, packet_block(1, payload(40, 1), 40));
    file.insert(file.end(), block.begin(), block.begin() + static_cast<std::ptrdiff_t>(cut));
    // The last bytes of its length are zeros.
    const std::size_t whole = cut + 3 >= block.size() ? 2 : 1;
    add(file, bytes(100'000));
    EXPECT_EQ(read(file).size(), whole) << cut;
    EXPECT_TRUE(seen_.cut_short && !seen_.damaged) << cut;
    EXPECT_EQ(seen_.unreadable, cut + 100'000 - (whole == 2 ? block.size() : 0)) << cut;
    if (cut % 10 != 0) continue;
    // What comes behind the zeros is lost, so that they are damage.
    add(file, packet_block(3, payload(40, 1), 40));
    EXPECT_EQ(read(file).size(), whole) << cut;
    EXPECT_TRUE(seen_.damaged) << cut;
  }
}

TEST_F(CaptureFile, AHostilePacketIsSkippedAndTheNextOneRead) {
  struct row {
    const char* what;
    std::size_t at;  // in the block, from its start
    std::uint32_t value;
  };
  for (const auto& [what, at, value] : {
           row{"an interface that is not there", 8, 7},
           row{"longer than its block", 20, 0x7fffffff},
           row{"longer than its block by wrapping round", 20, 0xfffffff0},
           row{"longer than on the wire", 24, 3},
       }) {
    bytes file = head();
    bytes bad = packet_block(1, payload(40, 1), 40);
    std::memcpy(bad.data() + at, &value, sizeof value);
    add(file, bad);
    add(file, packet_block(2, payload(8, 2), 8));
    const auto got = read(file);
    ASSERT_EQ(got.size(), 1u) << what;
    EXPECT_EQ(got[0].data, payload(8, 2)) << what;
    EXPECT_EQ(seen_.skipped, 1u) << what;
    EXPECT_FALSE(seen_.damaged) << what;
  }
}

TEST_F(CaptureFile, ABrokenFramingEndsTheFileAndTheRestIsCounted) {
  for (const std::uint32_t length : {0u, 4u, 8u, 70u, 0xfffffff1u}) {
    bytes file = head();
    add(file, packet_block(1, payload(40, 1), 40));
    bytes bad = packet_block(2, payload(40, 1), 40);
    std::memcpy(bad.data() + 4, &length, sizeof length);
    add(file, bad);
    EXPECT_EQ(read(file).size(), 1u) << length;
    EXPECT_TRUE(seen_.damaged) << length;
    EXPECT_EQ(seen_.unreadable, bad.size()) << length;
  }
  // The length behind the block is another one.
  bytes file = head();
  bytes bad = packet_block(1, payload(40, 1), 40);
  bad.back() = std::byte{1};
  add(file, bad);
  EXPECT_TRUE(read(file).empty());
  EXPECT_TRUE(seen_.damaged);
  // As large as a block can be that is read over, in a small file.
  file = head();
  add_number(file, 0x0bad0bad);
  add_number(file, 0xfffffffcu);
  add(file, bytes(100));
  EXPECT_TRUE(read(file).empty());
  EXPECT_TRUE(seen_.cut_short);
}

TEST_F(CaptureFile, OtherSectionsBlocksAndOrdersAreRead) {
  bytes file = head();
  // A block of a kind that nobody knows.
  add_number(file, 0x0bad);
  add_number(file, 16);
  add_number(file, 0);
  add_number(file, 16);
  add(file, packet_block(5, payload(4, 1), 4));
  // A section in the other byte order, with an interface of microseconds and one of 2^-10 s that is
  // an hour off.
  const auto n32 = [&file](std::uint32_t v) { add_number(file, v, true); };
  const auto n16 = [&file](std::uint16_t v) { add_number(file, v, true); };
  n32(0x0a0d0d0a), n32(28), n32(pcapng::byte_order_magic), n16(1), n16(0);
  n32(0xffffffff), n32(0xffffffff), n32(28);
  n32(1), n32(20), n16(101), n16(0), n32(0), n32(20);
  n32(1), n32(44), n16(1), n16(0), n32(0);
  n16(9), n16(1), file.push_back(std::byte{0x80 | 10}), file.resize(file.size() + 3);
  n16(14), n16(8), add_number(file, std::int64_t{3600}, true), n16(0), n16(0), n32(44);
  for (const std::uint32_t which : {0u, 1u}) {
    n32(6), n32(36), n32(which), n32(0), n32(1536), n32(4), n32(4), n32(0x01020304), n32(36);
  }
  // A simple packet, and one of the obsolete kind with 9 drops.
  n32(3), n32(20), n32(3), n32(0x01020300), n32(20);
  n32(2), n32(36), n16(1), n16(9), n32(0), n32(0), n32(4), n32(4), n32(0x01020304), n32(36);
  const auto got = read(file);
  ASSERT_EQ(got.size(), 5u);
  EXPECT_EQ(got[0].stamp_ns, 5u);
  EXPECT_EQ(got[1].stamp_ns, 1'536'000u);
  EXPECT_EQ(got[1].link_type, 101u);
  EXPECT_EQ(got[1].interface, 1u);
  EXPECT_EQ(got[2].stamp_ns, 3'601'500'000'000u);
  EXPECT_EQ(got[2].interface, 2u);
  EXPECT_EQ(got[3].data.size(), 3u);
  EXPECT_EQ(got[4].stamp_ns, 3'600'000'000'000u);
  EXPECT_EQ(seen_.other_blocks, 1u);
  EXPECT_EQ(seen_.skipped, 0u);
}

TEST_F(CaptureFile, ClassicFilesOfAllFourKindsAreRead) {
  for (const bool swapped : {false, true}) {
    for (const bool nano : {false, true}) {
      bytes file;
      const auto n32 = [&](std::uint32_t v) { add_number(file, v, swapped); };
      n32(nano ? 0xa1b23c4d : 0xa1b2c3d4);
      add_number(file, std::uint16_t{2}, swapped);
      add_number(file, std::uint16_t{4}, swapped);
      n32(0), n32(0), n32(65535), n32(113);
      n32(10), n32(20), n32(4), n32(60), n32(0);
      n32(11), n32(2'000'000'000), n32(4), n32(60), n32(0);  // no time
      n32(12), n32(0), n32(8), n32(4), n32(0), n32(0);       // longer than on the wire
      n32(13), n32(0), n32(0), n32(9);
      n32(14), n32(0), n32(0xfffffff0), n32(9);  // no length
      const auto got = read(file);
      ASSERT_EQ(got.size(), 2u);
      EXPECT_EQ(got[0].stamp_ns, 10'000'000'000u + (nano ? 20u : 20'000u));
      EXPECT_EQ(got[0].wire, 60u);
      EXPECT_EQ(got[0].link_type, 113u);
      EXPECT_EQ(got[1].data.size(), 0u);
      EXPECT_EQ(seen_.skipped, 2u);
      EXPECT_TRUE(seen_.damaged);
      EXPECT_EQ(seen_.unreadable, 16u);
    }
  }
}

TEST_F(CaptureFile, WhatIsNoCaptureFileIsRefused) {
  EXPECT_EQ(capture_reader::open("/nonexistent/file").error().value(), ENOENT);
  EXPECT_EQ(capture_reader::open("/tmp").error().value(), EISDIR);
  for (const bytes& file : {bytes{}, payload(10, 1), payload(1000, 2), bytes(1000)}) {
    EXPECT_TRUE(read(file).empty());
    EXPECT_FALSE(opened_);
  }
}

TEST_F(CaptureFile, AnyDamageIsSurvived) {
  bytes good = head();
  for (unsigned i = 0; i < 20; ++i) add(good, packet_block(i, payload(i * 3, i), i * 3));
  add(good, pcapng::report({}));
  std::mt19937 random(4711);
  const unsigned rounds = std::getenv("FOREBAY_STRESS") != nullptr ? 100'000 : 300;
  for (unsigned round = 0; round < rounds; ++round) {
    bytes file = good;
    for (unsigned hits = 1 + random() % 8; hits != 0; --hits) {
      file[random() % file.size()] = static_cast<std::byte>(random());
    }
    file.resize(file.size() - random() % 3 * (random() % 100));
    for (const packet& p : read(file)) ASSERT_LE(p.data.size(), file.size());
  }
}

}  // namespace
}  // namespace forebay
