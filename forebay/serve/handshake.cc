// The handshake phase: fixed newstyle negotiation (doc/proto.md, "Handshake").

#include <algorithm>
#include <new>
#include <string_view>
#include <utility>

#include "forebay/serve/connection.h"

namespace forebay {
namespace {

std::string_view text_of(std::span<const std::byte> data) noexcept {
  return {reinterpret_cast<const char*>(data.data()), data.size()};
}

const std::byte* bytes_of(std::string_view s) noexcept {
  return reinterpret_cast<const std::byte*>(s.data());
}

template <std::size_t Capacity>
std::string_view text_of(const nbd::message<Capacity>& m) noexcept {
  return {reinterpret_cast<const char*>(m.data()), m.size()};
}

// Takes integers and strings off the front of an option's data; once something is missing
// everything is.
class option_reader {
 public:
  explicit option_reader(std::span<const std::byte> data) noexcept : left_(data) {}

  template <std::unsigned_integral T>
  T take() noexcept {
    if (left_.size() < sizeof(T)) {
      good_ = false;
      left_ = {};
      return 0;
    }
    const T v = nbd::load<T>(left_.data());
    left_ = left_.subspan(sizeof(T));
    return v;
  }

  std::string_view take_text(std::size_t bytes) noexcept {
    if (bytes > nbd::max_string_bytes || left_.size() < bytes) {
      good_ = false;
      left_ = {};
      return {};
    }
    const auto s = text_of(left_.first(bytes));
    left_ = left_.subspan(bytes);
    return s;
  }

  bool good() const noexcept { return good_; }
  bool at_end() const noexcept { return good_ && left_.empty(); }
  std::span<const std::byte> left() const noexcept { return left_; }

 private:
  std::span<const std::byte> left_;
  bool good_ = true;
};

// Whether a query of NBD_OPT_LIST_META_CONTEXT or NBD_OPT_SET_META_CONTEXT selects base:allocation.
bool selects_allocation(std::string_view query, bool listing) noexcept {
  return query == nbd::base_allocation || (listing && query == "base:");
}

// Whether a type is in a list of 16-bit information types.
bool asks_for(std::span<const std::byte> wanted, nbd::info type) noexcept {
  for (; wanted.size() >= 2; wanted = wanted.subspan(2)) {
    if (nbd::load<std::uint16_t>(wanted.data()) == static_cast<std::uint16_t>(type)) return true;
  }
  return false;
}

// Room for all replies to one option: about an export there are five, with two strings.
constexpr reply_queue::need option_room{
    .iovecs = 16, .pins = 0, .bytes = 2 * nbd::max_string_bytes + 512};

}  // namespace

// The header of a reply to an option, which so many bytes of payload follow. There is room for it.
void connection::begin_option_reply(nbd::option which, nbd::option_reply type,
                                    std::size_t bytes) noexcept {
  nbd::message<20> m;
  m.put(nbd::option_reply_magic)
      .put(static_cast<std::uint32_t>(which))
      .put(static_cast<std::uint32_t>(type))
      .put(static_cast<std::uint32_t>(bytes));
  out_.append(m.data(), m.size());
  out_.kick();
}

// A whole reply to an option, for which there is room.
void connection::reply_option(nbd::option which, nbd::option_reply type,
                              std::initializer_list<std::string_view> payload) noexcept {
  std::size_t bytes = 0;
  for (const std::string_view part : payload) bytes += part.size();
  begin_option_reply(which, type, bytes);
  for (const std::string_view part : payload) out_.append(bytes_of(part), part.size());
}

// Ends well when the client has entered the transmission phase.
task<> connection::handshake() {
  nbd::message<18> greeting;
  greeting.put(nbd::init_magic)
      .put(nbd::option_magic)
      .put(static_cast<std::uint16_t>(nbd::fixed_newstyle | nbd::no_zeroes));
  while (!out_.room(option_room)) co_await next_chance();
  out_.append(greeting.data(), greeting.size());
  out_.kick();

  result<> r = co_await in_.fill(4);
  if (!r) co_return r;
  const auto flags = nbd::load<std::uint32_t>(in_.available().data());
  in_.consume(4);
  if ((flags & ~std::uint32_t{nbd::fixed_newstyle | nbd::no_zeroes}) != 0) {
    co_return fail(errc::protocol);
  }
  session_.no_zeroes = (flags & nbd::no_zeroes) != 0;

  while (session_.exported == nullptr) {
    // One option at a time: who does not receive the replies is not asked for more.
    while (!out_.idle()) {
      co_await out_.progress().wait_unless([this]() noexcept { return out_.idle(); });
    }
    while (!out_.room(option_room)) co_await next_chance();
    if (out_.broken()) co_return fail(errc::end_of_stream);
    r = co_await in_.fill(16);
    if (!r) co_return r;
    const std::byte* at = in_.available().data();
    if (nbd::load<std::uint64_t>(at) != nbd::option_magic) co_return fail(errc::protocol);
    const auto which = static_cast<nbd::option>(nbd::load<std::uint32_t>(at + 8));
    const auto length = nbd::load<std::uint32_t>(at + 12);
    in_.consume(16);
    const result<bool> goes_on = co_await handle_option(which, length);
    if (!goes_on) co_return fail(goes_on.error());
    if (!*goes_on) co_return fail(errc::end_of_stream);
  }
  co_return result<>{};
}

// One option. False when the client has said goodbye.
task<bool> connection::handle_option(nbd::option which, std::uint32_t length) {
  if (which == nbd::option::export_name) co_return co_await option_export_name(length);
  if (length > nbd::max_option_bytes || !in_.can_hold(length)) {
    if (length > nbd::max_payload_bytes) co_return fail(errc::protocol);
    const result<> skipped = co_await in_.skip(length);
    if (!skipped) co_return fail(skipped.error());
    reply_option(which, nbd::option_reply::error_too_big);
    co_return true;
  }
  const result<> r = co_await in_.fill(length);
  if (!r) co_return fail(r.error());
  const std::span<const std::byte> data = in_.available().first(length);
  bool goes_on = true;
  switch (which) {
    case nbd::option::abort:
      reply_option(which, nbd::option_reply::ack);
      goes_on = false;
      break;
    case nbd::option::list:
      if (!data.empty()) {
        reply_option(which, nbd::option_reply::error_invalid);
      } else if (const result<> listed = co_await option_list(); !listed) {
        co_return fail(listed.error());
      }
      break;
    case nbd::option::info:
    case nbd::option::go:
      if (option_go(which, data)) out_.kick();
      break;
    case nbd::option::structured_reply:
      if (length != 0) {
        reply_option(which, nbd::option_reply::error_invalid);
      } else {
        session_.structured = true;
        reply_option(which, nbd::option_reply::ack);
      }
      break;
    case nbd::option::list_meta_context:
    case nbd::option::set_meta_context:
      option_meta_context(which, data);
      break;
    case nbd::option::statistics:
      if (const result<> told = co_await option_statistics(); !told) co_return fail(told.error());
      break;
    default:
      reply_option(which, nbd::option_reply::error_unsupported);
      break;
  }
  in_.consume(length);
  co_return goes_on;
}

// The old way in, which has no reply for an error: the connection just ends.
task<bool> connection::option_export_name(std::uint32_t length) {
  if (length > nbd::max_string_bytes) co_return fail(errc::protocol);
  const result<> r = co_await in_.fill(length);
  if (!r) co_return fail(r.error());
  nbd_export* e = host_.find_export(text_of(in_.available().first(length)));
  in_.consume(length);
  if (e == nullptr) co_return fail(errc::protocol);
  nbd::message<10> m;
  m.put(e->size_bytes()).put(e->transmission_flags(session_.structured));
  out_.append(m.data(), m.size());
  if (!session_.no_zeroes) {
    constexpr std::array<std::byte, 124> zeroes{};
    out_.append(zeroes.data(), zeroes.size());
  }
  out_.kick();
  session_.exported = e;
  co_return true;
}

task<> connection::option_list() {
  for (std::size_t i = 0; nbd_export* e = host_.export_at(i); ++i) {
    while (!out_.room(option_room)) co_await next_chance();
    nbd::message<4> length;
    length.put(static_cast<std::uint32_t>(e->name().size()));
    reply_option(nbd::option::list, nbd::option_reply::server,
                 {text_of(length), e->name(), e->options().description});
  }
  while (!out_.room(option_room)) co_await next_chance();
  reply_option(nbd::option::list, nbd::option_reply::ack);
  co_return result<>{};
}

void connection::send_export_info(nbd::option which, nbd_export& e,
                                  std::span<const std::byte> wanted) noexcept {
  nbd::message<12> about;
  about.put(static_cast<std::uint16_t>(nbd::info::export_info))
      .put(e.size_bytes())
      .put(e.transmission_flags(session_.structured));
  reply_option(which, nbd::option_reply::info, {text_of(about)});

  nbd::message<14> blocks;
  blocks.put(static_cast<std::uint16_t>(nbd::info::block_size))
      .put(e.options().min_block_bytes)
      .put(e.preferred_block_bytes())
      .put(nbd::max_payload_bytes);
  reply_option(which, nbd::option_reply::info, {text_of(blocks)});

  // Each once, however often it is asked for.
  for (const auto& [type, text] : {std::pair{nbd::info::name, &e.name()},
                                   std::pair{nbd::info::description, &e.options().description}}) {
    if (!asks_for(wanted, type)) continue;
    nbd::message<2> number;
    number.put(static_cast<std::uint16_t>(type));
    reply_option(which, nbd::option_reply::info, {text_of(number), *text});
  }
}

// INFO and GO. True if the export was found; GO then enters the transmission phase.
bool connection::option_go(nbd::option which, std::span<const std::byte> data) noexcept {
  option_reader in(data);
  const std::string_view name = in.take_text(in.take<std::uint32_t>());
  const auto count = in.take<std::uint16_t>();
  if (!in.good() || in.left().size() != std::size_t{count} * 2) {
    reply_option(which, nbd::option_reply::error_invalid);
    return false;
  }
  nbd_export* e = host_.find_export(name);
  if (e == nullptr) {
    reply_option(which, nbd::option_reply::error_unknown, {"no export of that name"});
    return false;
  }
  if (asks_for(in.left(), nbd::info::block_size)) session_.knows_block_size = true;
  send_export_info(which, *e, in.left());
  reply_option(which, nbd::option_reply::ack);
  if (which == nbd::option::go) session_.exported = e;
  return true;
}

void connection::option_meta_context(nbd::option which, std::span<const std::byte> data) noexcept {
  const bool listing = which == nbd::option::list_meta_context;
  // A SET replaces what an earlier one has selected even when it fails.
  if (!listing) session_.allocation_of = nullptr;
  if (!session_.structured) return reply_option(which, nbd::option_reply::error_invalid);
  option_reader in(data);
  const std::string_view name = in.take_text(in.take<std::uint32_t>());
  const auto count = in.take<std::uint32_t>();
  bool selected = listing && count == 0;
  for (std::uint32_t i = 0; i < count && in.good(); ++i) {
    selected = selects_allocation(in.take_text(in.take<std::uint32_t>()), listing) || selected;
  }
  if (!in.at_end()) return reply_option(which, nbd::option_reply::error_invalid);
  nbd_export* e = host_.find_export(name);
  if (e == nullptr) return reply_option(which, nbd::option_reply::error_unknown);
  if (!listing) session_.allocation_of = selected ? e : nullptr;
  if (selected) {
    nbd::message<4> id;
    id.put(listing ? 0u : nbd::base_allocation_id);
    reply_option(which, nbd::option_reply::meta_context, {text_of(id), nbd::base_allocation});
  }
  reply_option(which, nbd::option_reply::ack);
}

task<> connection::option_statistics() {
  std::string all;
  try {
    all = host_.statistics_text();
  } catch (const std::bad_alloc&) {
    reply_option(nbd::option::statistics, nbd::option_reply::error_too_big);
    co_return result<>{};
  }
  begin_option_reply(nbd::option::statistics, nbd::option_reply::statistics, all.size());
  for (std::string_view left = all; !left.empty();) {
    while (!out_.room(option_room)) co_await next_chance();
    const std::string_view part = left.substr(0, option_room.bytes);
    out_.append(bytes_of(part), part.size());
    left.remove_prefix(part.size());
  }
  while (!out_.room(option_room)) co_await next_chance();
  reply_option(nbd::option::statistics, nbd::option_reply::ack);
  co_return result<>{};
}

}  // namespace forebay
