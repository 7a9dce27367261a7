// The handshake, option by option, against a server over memory.

#include "forebay/serve/test_server.h"

namespace forebay {
namespace {

using nbd::option;
using reply = nbd::option_reply;

class Handshake : public ::testing::Test {
 protected:
  Handshake() {
    export_options first = named("disk");
    first.description = "the first";
    first.min_block_bytes = 1024;
    served.add(first);
    served.add(named("second"), 1u << 20);
    served.add(named("fixed"), 1u << 20, true);
    served.start();
  }
  test_server served;
};

constexpr std::uint16_t all_infos[] = {0, 1, 2, 3};

// The NBD_INFO of a type among the replies of INFO or GO.
std::optional<bytes> info_of(const std::vector<raw_client::option_answer>& all, nbd::info type) {
  for (const auto& a : all) {
    if (a.type == reply::info && a.payload.size() >= 2 &&
        nbd::load<std::uint16_t>(a.payload.data()) == static_cast<std::uint16_t>(type)) {
      return bytes(a.payload.begin() + 2, a.payload.end());
    }
  }
  return std::nullopt;
}

TEST_F(Handshake, GreetsWithFixedNewstyleAndNoZeroes) {
  raw_client c(served);
  ASSERT_TRUE(c.greet());
  EXPECT_EQ(c.handshake_flags, nbd::fixed_newstyle | nbd::no_zeroes);
  EXPECT_EQ(c.outcome(option::go, c.go_data("disk")), reply::ack);
  EXPECT_EQ(c.flush(), 0u);
}

TEST_F(Handshake, UnknownClientFlagsEndIt) {
  for (const std::uint32_t flags : {4u, 0x80000000u, 7u, 0xffffffffu}) {
    raw_client c(served);
    ASSERT_TRUE(c.greet(flags));
    EXPECT_TRUE(c.at_end()) << flags;
  }
}

TEST_F(Handshake, ExportNameWithAndWithoutZeroes) {
  for (const bool zeroes : {false, true}) {
    raw_client c(served);
    ASSERT_TRUE(c.greet(nbd::fixed_newstyle | (zeroes ? 0u : unsigned{nbd::no_zeroes})));
    ASSERT_TRUE(c.send(c.option(option::export_name, to_bytes("second"))));
    const auto head = c.receive(10);
    ASSERT_TRUE(head);
    EXPECT_EQ(nbd::load<std::uint64_t>(head->data()), 1u << 20);
    EXPECT_NE(nbd::load<std::uint16_t>(head->data() + 8) & nbd::has_flags, 0);
    if (zeroes) {
      const auto rest = c.receive(124);
      ASSERT_TRUE(rest);
      EXPECT_EQ(*rest, bytes(124));
    }
    EXPECT_EQ(c.write(0, bytes(512, std::byte{9})), 0u);
    EXPECT_EQ(c.read(0, 512), bytes(512, std::byte{9}));
  }
}

TEST_F(Handshake, ExportNameOfNothingEndsIt) {
  raw_client c(served);
  ASSERT_TRUE(c.greet());
  ASSERT_TRUE(c.send(c.option(option::export_name, to_bytes("absent"))));
  EXPECT_TRUE(c.at_end());
  raw_client d(served);
  ASSERT_TRUE(d.greet());
  ASSERT_TRUE(d.send(wire().put(nbd::option_magic).put(std::uint32_t{1}).put(UINT32_MAX)));
  EXPECT_TRUE(d.at_end());
}

TEST_F(Handshake, AbortIsAcknowledged) {
  raw_client c(served);
  ASSERT_TRUE(c.greet());
  EXPECT_EQ(c.outcome(option::abort), reply::ack);
  EXPECT_TRUE(c.at_end());
}

TEST_F(Handshake, ListNamesAllAndTakesNoData) {
  raw_client c(served);
  ASSERT_TRUE(c.greet());
  const auto all = c.ask(option::list);
  ASSERT_EQ(all.size(), 4u);
  EXPECT_EQ(all[0].type, reply::server);
  EXPECT_EQ(all[0].text(), std::string("\0\0\0\4diskthe first", 17));
  EXPECT_EQ(all[1].text(), std::string("\0\0\0\6second", 10));
  EXPECT_EQ(all[3].type, reply::ack);
  EXPECT_EQ(c.outcome(option::list, bytes(1)), reply::error_invalid);
  EXPECT_EQ(c.outcome(option::go, c.go_data("disk")), reply::ack);
}

TEST_F(Handshake, InfoAndGoTellTheExport) {
  raw_client c(served);
  ASSERT_TRUE(c.greet());
  for (const option o : {option::info, option::go}) {
    const auto all = c.ask(o, c.go_data("", {all_infos, all_infos + 4}));
    ASSERT_FALSE(all.empty());
    EXPECT_EQ(all.back().type, reply::ack);
    const auto e = info_of(all, nbd::info::export_info);
    ASSERT_TRUE(e && e->size() == 10);
    EXPECT_EQ(nbd::load<std::uint64_t>(e->data()), 4u << 20);
    const auto flags = nbd::load<std::uint16_t>(e->data() + 8);
    EXPECT_EQ(flags, nbd::has_flags | nbd::send_flush | nbd::send_fua | nbd::send_trim |
                         nbd::send_write_zeroes | nbd::can_multi_conn | nbd::send_cache |
                         nbd::send_fast_zero);
    EXPECT_EQ(info_of(all, nbd::info::name), to_bytes("disk"));
    EXPECT_EQ(info_of(all, nbd::info::description), to_bytes("the first"));
    const auto block = info_of(all, nbd::info::block_size);
    ASSERT_TRUE(block && block->size() == 12);
    EXPECT_EQ(nbd::load<std::uint32_t>(block->data()), 1024u);
    EXPECT_EQ(nbd::load<std::uint32_t>(block->data() + 4), 4096u);
    EXPECT_EQ(nbd::load<std::uint32_t>(block->data() + 8), nbd::max_payload_bytes);
  }
  // Who has asked for the block size must keep to it.
  EXPECT_EQ(c.call(nbd::command::read, 512, 512), 22u);
  EXPECT_EQ(c.write(0, bytes(512)), 22u);
  EXPECT_EQ(c.write(0, bytes(1024)), 0u);
}

TEST_F(Handshake, ReadOnlyExportSaysSo) {
  raw_client c(served);
  ASSERT_TRUE(c.greet());
  const auto all = c.ask(option::go, c.go_data("fixed"));
  const auto e = info_of(all, nbd::info::export_info);
  ASSERT_TRUE(e && e->size() == 10);
  const auto flags = nbd::load<std::uint16_t>(e->data() + 8);
  EXPECT_NE(flags & nbd::read_only, 0);
  EXPECT_EQ(flags & (nbd::send_trim | nbd::send_write_zeroes | nbd::send_fast_zero), 0);
  EXPECT_EQ(c.write(0, bytes(512)), 1u);
  EXPECT_EQ(c.call(nbd::command::trim, 0, 4096), 1u);
  EXPECT_EQ(c.call(nbd::command::write_zeroes, 0, 4096), 1u);
  EXPECT_EQ(c.flush(), 0u);
  EXPECT_EQ(c.read(0, 4096), bytes(4096));
}

TEST_F(Handshake, GoThatFailsMayBeTriedAgain) {
  raw_client c(served);
  ASSERT_TRUE(c.greet());
  EXPECT_EQ(c.outcome(option::go, c.go_data("absent")), reply::error_unknown);
  EXPECT_EQ(c.outcome(option::info, c.go_data("disk ")), reply::error_unknown);
  EXPECT_EQ(c.outcome(option::go, {}), reply::error_invalid);
  EXPECT_EQ(c.outcome(option::go, bytes(5)), reply::error_invalid);
  bytes data = c.go_data("disk", {1});
  data.pop_back();
  EXPECT_EQ(c.outcome(option::go, data), reply::error_invalid);
  data = c.go_data("disk");
  data.push_back(std::byte{0});
  EXPECT_EQ(c.outcome(option::go, data), reply::error_invalid);
  data = wire().put(UINT32_MAX).put("disk").put(std::uint16_t{0}).data();
  EXPECT_EQ(c.outcome(option::go, data), reply::error_invalid);
  EXPECT_EQ(c.outcome(option::go, c.go_data(std::string(5000, 'x'))), reply::error_invalid);
  EXPECT_EQ(c.outcome(option::go, c.go_data(std::string("di\0sk", 5))), reply::error_unknown);
  EXPECT_EQ(c.outcome(option::go, c.go_data("disk", {77, 1, 1, 65535})), reply::ack);
  EXPECT_EQ(c.flush(), 0u);
}

TEST_F(Handshake, OptionsOfAnySizeAreUnderstoodOrPassedOver) {
  raw_client c(served);
  ASSERT_TRUE(c.greet());
  EXPECT_EQ(c.outcome(option::starttls), reply::error_unsupported);
  EXPECT_EQ(c.outcome(option{0}), reply::error_unsupported);
  EXPECT_EQ(c.outcome(option{4711}, bytes(65536)), reply::error_unsupported);
  EXPECT_EQ(c.outcome(option{4711}, bytes(65537)), reply::error_too_big);
  EXPECT_EQ(c.outcome(option::go, bytes(1u << 20)), reply::error_too_big);
  EXPECT_EQ(c.outcome(option::structured_reply, bytes(1)), reply::error_invalid);
  EXPECT_EQ(c.outcome(option::structured_reply), reply::ack);
  EXPECT_EQ(c.outcome(option::structured_reply), reply::ack);
  EXPECT_EQ(c.outcome(option::extended_headers, bytes(1)), reply::error_invalid);
  EXPECT_EQ(c.outcome(option::extended_headers), reply::ack);
  EXPECT_EQ(c.outcome(option::extended_headers), reply::ack);
  EXPECT_EQ(c.outcome(option::structured_reply), reply::error_extended_headers);
  EXPECT_EQ(c.outcome(option::go, c.go_data("disk")), reply::ack);
}

TEST_F(Handshake, AbsurdLengthOrMagicEndsIt) {
  raw_client c(served);
  ASSERT_TRUE(c.greet());
  ASSERT_TRUE(c.send(wire().put(nbd::option_magic).put(std::uint32_t{7}).put(UINT32_MAX)));
  EXPECT_TRUE(c.at_end());
  raw_client d(served);
  ASSERT_TRUE(d.greet());
  ASSERT_TRUE(d.send(wire().put(nbd::option_magic + 1).put(std::uint32_t{7}).put(0u)));
  EXPECT_TRUE(d.at_end());
}

TEST_F(Handshake, StatisticsAreJson) {
  raw_client c(served);
  ASSERT_TRUE(c.greet());
  const auto all = c.ask(option::statistics);
  ASSERT_EQ(all.size(), 2u);
  EXPECT_EQ(all[0].type, reply::statistics);
  EXPECT_EQ(all[0].text().front(), '{');
  EXPECT_NE(all[0].text().find("\"second\""), std::string::npos);
  EXPECT_EQ(all[1].type, reply::ack);
}

TEST_F(Handshake, MetaContextsAreListedAndSelected) {
  raw_client c(served);
  ASSERT_TRUE(c.greet());
  const auto context = c.context_data("disk", {"base:allocation"});
  EXPECT_EQ(c.outcome(option::list_meta_context, context), reply::error_invalid);
  EXPECT_EQ(c.outcome(option::set_meta_context, context), reply::error_invalid);
  ASSERT_EQ(c.outcome(option::structured_reply), reply::ack);
  const auto selected = [&](option o, const std::vector<std::string>& queries) {
    const auto all = c.ask(o, c.context_data("disk", queries));
    EXPECT_FALSE(all.empty());
    EXPECT_EQ(all.back().type, reply::ack);
    std::string names;
    for (std::size_t i = 0; i + 1 < all.size(); ++i) {
      EXPECT_EQ(all[i].type, reply::meta_context);
      names += (names.empty() ? "" : " ") + all[i].text().substr(4);
    }
    return names;
  };
  const std::string both = "base:allocation forebay:cache";
  EXPECT_EQ(selected(option::list_meta_context, {}), both);
  EXPECT_EQ(selected(option::list_meta_context, {"base:"}), "base:allocation");
  EXPECT_EQ(selected(option::list_meta_context, {"forebay:"}), "forebay:cache");
  EXPECT_EQ(selected(option::list_meta_context, {"other:", "base:allocation"}), "base:allocation");
  EXPECT_EQ(selected(option::list_meta_context, {"other:"}), "");
  EXPECT_EQ(selected(option::set_meta_context, {}), "");
  EXPECT_EQ(selected(option::set_meta_context, {"base:"}), "");
  EXPECT_EQ(selected(option::set_meta_context, {nbd::forebay_cache, nbd::base_allocation}), both);
  EXPECT_EQ(selected(option::set_meta_context, {"qemu:x", "base:allocation"}), "base:allocation");
  EXPECT_EQ(c.outcome(option::list_meta_context, c.context_data("absent", {})),
            reply::error_unknown);
  EXPECT_EQ(c.outcome(option::go, c.go_data("disk")), reply::ack);
  c.structured = true;
  EXPECT_EQ(c.call(nbd::command::block_status, 0, 4096), 0u);
}

TEST_F(Handshake, MalformedMetaContexts) {
  raw_client c(served);
  ASSERT_TRUE(c.greet());
  ASSERT_EQ(c.outcome(option::structured_reply), reply::ack);
  const bytes good = c.context_data("disk", {"base:allocation"});
  for (std::size_t cut = 0; cut < good.size(); ++cut) {
    EXPECT_EQ(c.outcome(option::set_meta_context, {good.begin(), good.begin() + cut}),
              reply::error_invalid);
  }
  bytes longer = good;
  longer.push_back(std::byte{0});
  EXPECT_EQ(c.outcome(option::list_meta_context, longer), reply::error_invalid);
  const auto endless =
      wire().put(4u).put("disk").put(UINT32_MAX).put(15u).put("base:allocation").data();
  EXPECT_EQ(c.outcome(option::set_meta_context, endless), reply::error_invalid);
  const auto many = wire().put(0u).put(UINT32_MAX).put(bytes(60000)).data();
  EXPECT_EQ(c.outcome(option::set_meta_context, many), reply::error_invalid);
}

TEST_F(Handshake, LastSetMetaContextCountsEvenIfItFails) {
  const auto status_after = [&](const bytes& last, reply expected) {
    raw_client c(served);
    EXPECT_TRUE(c.greet());
    EXPECT_EQ(c.outcome(option::structured_reply), reply::ack);
    EXPECT_EQ(c.outcome(option::set_meta_context, c.context_data("disk", {"base:allocation"})),
              reply::ack);
    EXPECT_EQ(c.outcome(option::set_meta_context, last), expected);
    EXPECT_EQ(c.outcome(option::go, c.go_data("disk")), reply::ack);
    c.structured = true;
    return c.call(nbd::command::block_status, 0, 4096);
  };
  EXPECT_EQ(status_after(raw_client::context_data("", {"base:allocation"}), reply::ack), 0u);
  EXPECT_EQ(status_after(raw_client::context_data("disk", {}), reply::ack), 22u);
  EXPECT_EQ(status_after(bytes(3), reply::error_invalid), 22u);
  EXPECT_EQ(status_after(raw_client::context_data("absent", {}), reply::error_unknown), 22u);
  // Selected for another export than is used.
  EXPECT_EQ(status_after(raw_client::context_data("second", {"base:allocation"}), reply::ack), 22u);
}

TEST_F(Handshake, ArrivesByteByByteAndAllAtOnce) {
  wire all;
  all.put(std::uint32_t{nbd::fixed_newstyle | nbd::no_zeroes});
  all.put(raw_client::option(option::structured_reply).data());
  all.put(raw_client::option(option::info, raw_client::go_data("second", {0, 3})).data());
  all.put(raw_client::option(option::go, raw_client::go_data("second")).data());
  all.put(raw_client::request(nbd::command::flush, 99).data());
  for (const std::size_t step : {std::size_t{1}, std::size_t{3}, all.data().size()}) {
    raw_client c(served);
    for (std::size_t at = 0; at < all.data().size(); at += step) {
      const auto* p = all.data().data() + at;
      ASSERT_TRUE(c.send(bytes(p, p + std::min(step, all.data().size() - at))));
    }
    ASSERT_TRUE(c.receive(18));
    unsigned acknowledgements = 0;
    while (acknowledgements < 3) {
      const auto a = c.receive_option();
      ASSERT_TRUE(a);
      acknowledgements += a->type == reply::ack ? 1 : 0;
    }
    const auto a = c.receive_answer();
    ASSERT_TRUE(a);
    EXPECT_EQ(a->cookie, 99u);
    EXPECT_EQ(a->error, 0u);
  }
}

// A client that asks and asks and receives nothing is not read from any more.
TEST_F(Handshake, OptionsWithoutReceivingPushBack) {
  raw_client c(served);
  ASSERT_TRUE(c.greet());
  const timeval limit{0, 200'000};
  ::setsockopt(c.fd(), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
  wire some;
  for (int i = 0; i < 1000; ++i) some.put(c.option(option::statistics).data());
  std::size_t sent = 0;
  while (sent < 64u << 20 && c.send(some)) sent += some.data().size();
  EXPECT_LT(sent, 4u << 20);
  raw_client other(served);
  EXPECT_TRUE(other.go("disk"));
}

}  // namespace
}  // namespace forebay
