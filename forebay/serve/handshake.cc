// The handshake phase: fixed newstyle negotiation (doc/proto.md, "Handshake").

#include <algorithm>
#include <new>
#include <string_view>
#include <utility>

#include "forebay/os/socket.h"
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

// What a query of NBD_OPT_LIST_META_CONTEXT or NBD_OPT_SET_META_CONTEXT selects: a context by its
// name, and for a list all of a namespace, "base:".
nbd::meta_context_set selected_by(std::string_view query, bool listing) noexcept {
  nbd::meta_context_set all = 0;
  for (unsigned i = 0; i < nbd::meta_contexts.size(); ++i) {
    const std::string_view name = nbd::meta_contexts[i];
    const bool whole_namespace = listing && query == name.substr(0, name.find(':') + 1);
    if (query == name || whole_namespace) all |= nbd::set_of(nbd::meta_context{i});
  }
  return all;
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
    while (!out_.idle()) co_await out_.next_idle();
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

// Whether an option is one that needs no TLS, or TLS is no duty, or is in use. What is read or
// changed of the server itself by its own user does not leave the machine, and his tools need no
// certificates.
bool connection::may_ask(nbd::option which) const noexcept {
  if (tls_ || host_.settings().tls != tls_policy::require) return true;
  switch (which) {
    case nbd::option::starttls:
    case nbd::option::abort:
      return true;
    case nbd::option::statistics:
    case nbd::option::tune:
      return peer_is_own_user(socket_.get());
    default:
      return false;
  }
}

// One option. False when the client has said goodbye.
task<bool> connection::handle_option(nbd::option which, std::uint32_t length) {
  const bool allowed = may_ask(which);
  if (which == nbd::option::export_name) {
    if (!allowed) co_return fail(errc::protocol);  // it has no reply that could say so
    co_return co_await option_export_name(length);
  }
  if (which == nbd::option::starttls && length == 0) co_return co_await option_starttls();
  if (!allowed || length > nbd::max_option_bytes || !in_.can_hold(length)) {
    if (length > nbd::max_payload_bytes) co_return fail(errc::protocol);
    const result<> skipped = co_await in_.skip(length);
    if (!skipped) co_return fail(skipped.error());
    if (allowed) {
      reply_option(which, nbd::option_reply::error_too_big);
    } else {
      reply_option(which, nbd::option_reply::error_tls_required, {"this server demands TLS"});
    }
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
    case nbd::option::starttls:  // with data
      reply_option(which, nbd::option_reply::error_invalid);
      break;
    case nbd::option::info:
    case nbd::option::go:
      if (option_go(which, data)) out_.kick();
      break;
    case nbd::option::structured_reply:
    case nbd::option::extended_headers:
      option_headers(which, length);
      break;
    case nbd::option::list_meta_context:
    case nbd::option::set_meta_context:
      option_meta_context(which, data);
      break;
    case nbd::option::statistics:
      if (const result<> told = co_await option_statistics(); !told) co_return fail(told.error());
      break;
    case nbd::option::tune:
      if (const result<> tuned = co_await option_tune(data); !tuned) co_return fail(tuned.error());
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
  if (length > nbd::max_string_bytes || session_.extended) co_return fail(errc::protocol);
  const result<> r = co_await in_.fill(length);
  if (!r) co_return fail(r.error());
  nbd_export* e = host_.find_export(text_of(in_.available().first(length)));
  in_.consume(length);
  if (e == nullptr) co_return fail(errc::protocol);
  nbd::message<10> m;
  m.put(e->size_bytes()).put(flags_of(*e));
  out_.append(m.data(), m.size());
  if (!session_.no_zeroes) {
    constexpr std::array<std::byte, 124> zeroes{};
    out_.append(zeroes.data(), zeroes.size());
  }
  out_.kick();
  session_.exported = e;
  co_return true;
}

// The rest of the connection is encrypted, and begins anew but for the client's flags. What came
// with the option would be taken for something said under TLS, though anybody on the way may have
// put it there: such a client is not served.
task<bool> connection::option_starttls() {
  const connection_settings& s = host_.settings();
  if (s.tls == tls_policy::off) {
    reply_option(nbd::option::starttls, nbd::option_reply::error_unsupported);
    co_return true;
  }
  if (tls_) {
    reply_option(nbd::option::starttls, nbd::option_reply::error_invalid);
    co_return true;
  }
  if (!in_.available().empty()) {
    host_.client_failed(client_failure::tls, socket_.get(), "it did not wait for TLS to start");
    co_return fail(errc::protocol);
  }
  reply_option(nbd::option::starttls, nbd::option_reply::ack);
  while (!out_.idle()) co_await out_.next_idle();
  if (out_.broken()) co_return fail(errc::end_of_stream);
  tls_.emplace(*s.credentials, host_.memory());
  if (!tls_->usable()) {
    host_.client_failed(client_failure::tls, socket_.get(), "no memory for it");
    co_return fail(ENOMEM);
  }
  if (const result<> agreed = co_await tls_->handshake(socket_.get()); !agreed) {
    if (agreed.error() == errc::protocol) {
      host_.client_failed(client_failure::tls, socket_.get(), tls_->problem());
    }
    co_return fail(agreed.error());
  }
  in_.use(*tls_);
  out_.use(*tls_);
  const bool no_zeroes = session_.no_zeroes;
  session_ = {};
  session_.no_zeroes = no_zeroes;
  co_return true;
}

// Which headers the transmission will have. Extended ones cannot be taken back.
void connection::option_headers(nbd::option which, std::uint32_t length) noexcept {
  if (length != 0) return reply_option(which, nbd::option_reply::error_invalid);
  if (session_.extended && which == nbd::option::structured_reply) {
    return reply_option(which, nbd::option_reply::error_extended_headers);
  }
  session_.structured = true;
  session_.extended = session_.extended || which == nbd::option::extended_headers;
  reply_option(which, nbd::option_reply::ack);
}

// What the client may ask of an export, as things stand.
std::uint16_t connection::flags_of(const nbd_export& e) const noexcept {
  const bool filters = session_.extended && session_.contexts_of == &e && session_.contexts != 0;
  return static_cast<std::uint16_t>(e.transmission_flags(session_.structured) |
                                    (filters ? nbd::block_status_payload : 0));
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
      .put(flags_of(e));
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
  if (!listing) session_.contexts = 0;
  if (!session_.structured) return reply_option(which, nbd::option_reply::error_invalid);
  option_reader in(data);
  const std::string_view name = in.take_text(in.take<std::uint32_t>());
  const auto count = in.take<std::uint32_t>();
  unsigned selected = listing && count == 0 ? (1u << nbd::meta_contexts.size()) - 1 : 0;
  for (std::uint32_t i = 0; i < count && in.good(); ++i) {
    selected |= selected_by(in.take_text(in.take<std::uint32_t>()), listing);
  }
  if (!in.at_end()) return reply_option(which, nbd::option_reply::error_invalid);
  nbd_export* e = host_.find_export(name);
  if (e == nullptr) return reply_option(which, nbd::option_reply::error_unknown);
  if (!listing) {
    session_.contexts_of = e;
    session_.contexts = static_cast<nbd::meta_context_set>(selected);
  }
  for (unsigned i = 0; i < nbd::meta_contexts.size(); ++i) {
    if ((selected >> i & 1) == 0) continue;
    nbd::message<4> id;
    id.put(listing ? 0u : i + 1);
    reply_option(which, nbd::option_reply::meta_context, {text_of(id), nbd::meta_contexts[i]});
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

// Who can signal the server may tune it, and nobody else: a client that may read an image is not
// meant to take the cache away from the others.
task<> connection::option_tune(std::span<const std::byte> data) {
  using reply = nbd::option_reply;
  if (!peer_is_own_user(socket_.get())) {
    reply_option(nbd::option::tune, reply::error_policy,
                 {"only the server's user and root may, at its unix socket"});
    co_return result<>{};
  }
  const result<std::string> problem = co_await host_.tune(text_of(data));
  while (!out_.room(option_room)) co_await next_chance();
  if (!problem) {
    reply_option(nbd::option::tune, reply::error_too_big);
  } else {
    reply_option(nbd::option::tune, problem->empty() ? reply::ack : reply::error_invalid,
                 {std::string_view(*problem).substr(0, nbd::max_string_bytes)});
  }
  co_return result<>{};
}

}  // namespace forebay
