#include "forebay/net/file_port.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>

#include "forebay/os/poll.h"

namespace forebay {
namespace {

bool is_known(std::uint16_t link) noexcept {
  return link == static_cast<std::uint16_t>(pcapng::link_type::ethernet) ||
         link == static_cast<std::uint16_t>(pcapng::link_type::raw_ip) ||
         link == static_cast<std::uint16_t>(pcapng::link_type::radiotap);
}

}  // namespace

result<std::unique_ptr<file_port>> file_port::open(const std::string& from, const std::string& to,
                                                   packet_pool& pool) {
  std::unique_ptr<file_port> made(new file_port(from.empty() ? to : from, pool));
  if (!from.empty()) {
    auto in = capture_reader::open(from);
    if (!in) return fail(in.error());
    made->in_.emplace(std::move(*in));
    made->ended_ = false;
    // The first packet says what kind they are.
    if (made->look()) made->link_ = static_cast<pcapng::link_type>(made->next_.link_type);
    if (made->error_) return fail(made->error_);
    if (made->has_next_ && !is_known(made->next_.link_type)) return fail(ENOTSUP);
  }
  if (!to.empty()) {
    auto out = stream_file::create(to);
    if (!out) return fail(out.error());
    made->out_.emplace(std::move(*out));
    std::vector<std::byte> head = pcapng::section_header({});
    const std::vector<std::byte> interface = pcapng::describe({.type = made->link_});
    head.insert(head.end(), interface.begin(), interface.end());
    if (auto r = made->out_->write(head); !r) return fail(r.error());
    made->out_bytes_ = head.size();
  }
  return made;
}

// Sees to it that there is a next record; false at the end.
bool file_port::look() noexcept {
  while (!has_next_ && !ended_) {
    const auto more = in_->next(next_);
    if (!more) error_ = more.error();
    if (!more || !*more) {
      ended_ = true;
      return false;
    }
    ++counted_.received;
    has_next_ = true;
  }
  return has_next_;
}

// The record there is as a packet; false if there is no buffer for it now.
bool file_port::copy_next(packet& out) noexcept {
  out = pool_.try_allocate();
  if (!out) return false;
  std::memcpy(out->put_unchecked(next_.data.size()), next_.data.data(), next_.data.size());
  out->set_timestamp_ns(next_.stamp_ns);
  out->set_wire_length(next_.wire_bytes);
  has_next_ = false;
  ++counted_.delivered;
  counted_.delivered_bytes += out->length();
  return true;
}

std::size_t file_port::receive(std::span<packet> out) noexcept {
  const std::size_t room = pool_.buffer_bytes() - pool_.headroom();
  std::size_t n = 0;
  while (n < out.size() && look()) {
    if (next_.data.size() > room || next_.link_type != static_cast<std::uint16_t>(link_)) {
      ++counted_.dropped_malformed;  // there can be only one kind in what is made of it
      has_next_ = false;
    } else if (!filter_.matches(next_.data, next_.wire_bytes)) {
      --counted_.received;
      has_next_ = false;
    } else if (!copy_next(out[n])) {
      break;
    } else {
      ++n;
    }
  }
  return n;
}

result<std::size_t> file_port::transmit(std::span<packet> packets) noexcept {
  if (!out_) return fail(ENOTSUP);
  std::size_t sent = 0;
  for (packet& p : packets) {
    const std::size_t length = p->length();
    encoded_.resize(pcapng::packet_block_bytes(length));
    std::byte* const data = pcapng::begin_packet(encoded_.data(), p->timestamp_ns(), length,
                                                 static_cast<std::uint32_t>(p->wire_length()));
    static_cast<void>(p->copy_out(0, {data, length}));  // it has so many
    pcapng::end_packet(data + length, length);
    if (auto r = out_->write(encoded_); !r) {
      // The file ends behind a whole block.
      static_cast<void>(out_->cut(out_bytes_));
      if (sent == 0) return fail(r.error());
      ++counted_.refused;
      break;
    }
    out_bytes_ += encoded_.size();
    ++counted_.transmitted;
    counted_.transmitted_bytes += length;
    p.reset();
    ++sent;
  }
  return sent;
}

result<> file_port::wait(int timeout_ms, int also) noexcept {
  // What is missing is a buffer, for which nobody gives a sign, or there will be nothing.
  const auto ready = wait_readable({&also, 1}, ended_ ? timeout_ms : std::min(timeout_ms, 1));
  if (!ready) return fail(ready.error());
  return {};
}

link_state file_port::state() noexcept { return ended_ && in_ ? link_state::gone : link_state::up; }

port_statistics file_port::statistics() noexcept {
  port_statistics s = counted_;
  const std::uint64_t skipped = in_ ? in_->seen().skipped : 0;
  s.received += skipped;
  s.dropped_malformed += skipped;
  if (has_next_) --s.received;  // it is the file's still
  return s;
}

capture_reader::counters file_port::seen() const noexcept {
  return in_ ? in_->seen() : capture_reader::counters{};
}

}  // namespace forebay
