// Replies: simple ones, and the chunks of structured ones.

#include <cstring>
#include <string_view>

#include "forebay/serve/connection.h"

namespace forebay {
namespace {

// Of an error, without the memory that std::error_code::message() takes.
std::string_view text_of(int error) noexcept {
  const char* const text = ::strerrordesc_np(error);
  return text == nullptr ? std::string_view("unknown error") : std::string_view(text);
}

}  // namespace

void connection::account(const nbd::request& r, bool failed) noexcept {
  if (r.type >= nbd_export::command_count) return;
  session_.exported->of(r.what()).record(r.length, failed,
                                         monotonic_clock::now_ns() - r.arrived_ns);
  client_.count(r.what(), failed ? 0 : r.length);
}

void connection::reply_chunk(const nbd::request& r, nbd::chunk type, std::uint64_t length,
                             bool last) noexcept {
  nbd::message<nbd::extended_chunk_header_bytes> m;
  m.put(session_.extended ? nbd::extended_reply_magic : nbd::structured_reply_magic)
      .put(last ? nbd::chunk_done : std::uint16_t{0})
      .put(static_cast<std::uint16_t>(type))
      .put(r.cookie);
  if (session_.extended) {
    m.put(r.offset).put(length);
  } else {
    m.put(static_cast<std::uint32_t>(length));
  }
  out_.append(m.data(), m.size());
}

// A reply without data: success, or an error.
void connection::reply(const nbd::request& r, std::error_code error) noexcept {
  const std::uint32_t number = error ? nbd::wire_error(to_errno(error)) : 0;
  account(r, number != 0);
  const bool structured =
      session_.extended || (session_.structured && (r.what() == nbd::command::read ||
                                                    r.what() == nbd::command::block_status));
  if (!structured) {
    nbd::message<nbd::simple_reply_bytes> m;
    m.put(nbd::simple_reply_magic).put(number).put(r.cookie);
    out_.append(m.data(), m.size());
  } else if (number == 0) {
    reply_chunk(r, nbd::chunk::none, 0, true);
  } else {
    const std::string_view text = text_of(to_errno(error));
    reply_chunk(r, nbd::chunk::error, 6 + text.size(), true);
    nbd::message<6> m;
    m.put(number).put(static_cast<std::uint16_t>(text.size()));
    out_.append(m.data(), m.size());
    out_.append(reinterpret_cast<const std::byte*>(text.data()), text.size());
  }
}

// The header of a read's only reply, which all of its data follows.
void connection::reply_whole_header(const nbd::request& r) noexcept {
  if (session_.structured) {
    reply_chunk(r, nbd::chunk::offset_data, 8 + r.length, true);
    nbd::message<8> m;
    m.put(r.offset);
    out_.append(m.data(), m.size());
  } else {
    nbd::message<nbd::simple_reply_bytes> m;
    m.put(nbd::simple_reply_magic).put(std::uint32_t{0}).put(r.cookie);
    out_.append(m.data(), m.size());
  }
}

// A part of a read, or all of it: pages of data, and holes where the device has holes. `last`:
// nothing of it comes after.
void connection::reply_pages(const nbd::request& r, std::uint64_t offset, std::size_t bytes,
                             std::span<page_ref> pins, bool last) noexcept {
  if (last) account(r, false);
  if (!session_.structured || (r.flags & nbd::flag_df) != 0) {
    reply_whole_header(r);
    return out_.append_pages(pins, offset - pins.front()->offset_bytes(), bytes);
  }
  while (bytes != 0) {
    // A run of pages that are all holes, or all data.
    const bool hole = pins.front()->test(page_zero);
    std::size_t count = 1;
    while (count < pins.size() && pins[count]->test(page_zero) == hole) ++count;
    const std::size_t n = std::min<std::uint64_t>(bytes, pins[count - 1]->end_bytes() - offset);
    const bool final_chunk = last && n == bytes;
    nbd::message<12> m;
    m.put(offset);
    if (hole) {
      m.put(static_cast<std::uint32_t>(n));
      reply_chunk(r, nbd::chunk::offset_hole, 12, final_chunk);
      out_.append(m.data(), m.size());
      for (page_ref& p : pins.first(count)) p.reset();
    } else {
      reply_chunk(r, nbd::chunk::offset_data, 8 + n, final_chunk);
      out_.append(m.data(), m.size());
      out_.append_pages(pins.first(count), offset - pins.front()->offset_bytes(), n);
    }
    pins = pins.subspan(count);
    offset += n;
    bytes -= n;
  }
}

}  // namespace forebay
