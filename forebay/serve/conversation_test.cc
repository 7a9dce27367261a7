// Conversations with clients that say anything: the seeds of the fuzzers, as they are and damaged.

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <random>

#include "forebay/serve/test_conversation.h"

namespace forebay {
namespace {

using beginning = test_conversation::beginning;

std::map<std::string, bytes> seeds_of(const std::string& fuzzer) {
  std::map<std::string, bytes> all;
  // Started by hand or by itself: from the directory that it was compiled in.
  const char* const given = std::getenv("FOREBAY_SOURCE");
  const std::string source =
      given != nullptr ? given : (std::filesystem::path(__FILE__).parent_path() / "../..").string();
  for (const auto& file : std::filesystem::directory_iterator(source + "/fuzz/corpus/" + fuzzer)) {
    std::ifstream in(file.path(), std::ios::binary);
    const std::string text{std::istreambuf_iterator<char>(in), {}};
    const auto* first = reinterpret_cast<const std::byte*>(text.data());
    all[file.path().filename()] = bytes(first, first + text.size());
  }
  return all;
}

bytes damaged(bytes seed, std::mt19937_64& rng) {
  for (auto n = rng() % 4 + 1; n != 0 && !seed.empty(); --n) {
    const std::size_t at = rng() % seed.size();
    const auto where = seed.begin() + static_cast<std::ptrdiff_t>(at);
    switch (rng() % 4) {
      case 0:
        seed[at] ^= static_cast<std::byte>(1u << rng() % 8);
        break;
      case 1:
        seed[at] = static_cast<std::byte>(rng() % 2 == 0 ? 0xff : rng());
        break;
      case 2:
        seed.erase(where, where + static_cast<std::ptrdiff_t>(
                                      std::min<std::size_t>(rng() % 40, seed.size() - at)));
        break;
      default:
        const bytes again(where, where + static_cast<std::ptrdiff_t>(
                                             std::min<std::size_t>(rng() % 40, seed.size() - at)));
        seed.insert(where, again.begin(), again.end());
    }
  }
  return seed;
}

int rounds() { return std::getenv("FOREBAY_STRESS") != nullptr ? 2000 : 40; }

TEST(conversation, handshakes_end_whatever_is_said) {
  const auto seeds = seeds_of("nbd_handshake");
  ASSERT_GE(seeds.size(), 9u);
  test_conversation c;
  EXPECT_GT(c.run(beginning::none, seeds.at("go")), 100u) << "it is answered";
  std::mt19937_64 rng(1);
  for (const auto& [name, seed] : seeds) {
    EXPECT_GE(c.run(beginning::none, seed), 18u) << name;
    for (int i = 0; i < rounds(); ++i) c.run(beginning::none, damaged(seed, rng));
  }
}

TEST(conversation, transmissions_end_whatever_is_said) {
  const auto seeds = seeds_of("nbd_transmission");
  ASSERT_GE(seeds.size(), 19u);
  test_conversation c;
  std::mt19937_64 rng(2);
  for (const auto& [name, seed] : seeds) {
    const auto how = static_cast<beginning>(1 + std::to_integer<unsigned>(seed.front()));
    const bytes said(seed.begin() + 1, seed.end());
    const std::size_t nothing = c.run(how, {});
    EXPECT_GT(c.run(how, said), nothing) << name << ": it is answered";
    for (int i = 0; i < rounds(); ++i) c.run(how, damaged(said, rng));
  }
}

}  // namespace
}  // namespace forebay
