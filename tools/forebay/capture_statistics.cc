#include "tools/forebay/capture_statistics.h"

#include <array>
#include <cinttypes>

#include "forebay/os/accept.h"
#include "forebay/os/socket.h"
#include "tools/forebay/command.h"

namespace forebay::tool {
namespace {

using json = nlohmann::ordered_json;

constexpr unsigned answer_timeout_ms = 5000;
constexpr std::uint32_t answer_bytes_max = 1u << 20;

std::uint64_t number(const json& j, const char* key) { return j.value(key, std::uint64_t{0}); }

std::uint64_t dropped_by_policy(const recorder_statistics& s) {
  return s.buffer.policy.tail_drops + s.buffer.policy.head_drops + s.buffer.policy.refusals;
}

// One line of an account, left out if it is of nothing.
std::string row(std::uint64_t packets, const std::string& what) {
  return packets == 0 ? "" : fmt::format("  {:>12}  {}\n", packets, what);
}

}  // namespace

std::uint64_t waiting_packets(const recorder_statistics& s) {
  const std::uint64_t settled = s.written + s.lost_to_errors + s.unwanted + dropped_by_policy(s) +
                                s.port.dropped_full + s.port.dropped_memory +
                                s.port.dropped_malformed;
  return s.port.received > settled ? s.port.received - settled : 0;
}

json capture_json(const capture_names& names, const recorder_statistics& s) {
  const exhaustion_statistics& p = s.buffer.policy;
  return {
      {"source", names.source},
      {"seconds", s.seconds},
      {"received", s.port.received},
      {"written", s.written},
      {"waiting", waiting_packets(s)},
      {"dropped",
       {{"kernel_ring_full", s.port.dropped_full},
        {"no_descriptor", s.port.dropped_memory},
        {"malformed", s.port.dropped_malformed},
        {"buffer_tail", p.tail_drops},
        {"buffer_head", p.head_drops},
        {"buffer_refused", p.refusals},
        {"write_errors", s.lost_to_errors},
        {"unwanted", s.unwanted}}},
      {"dropped_by_interface", s.port.dropped_interface},
      {"policy",
       {{"name", names.policy},
        {"raised", p.raised},
        {"lowered", p.lowered},
        {"expansions", p.expansions},
        {"waits", p.waits}}},
      {"buffer",
       {{"used_bytes", s.buffer.waiting_chunks * s.buffer.chunk_bytes},
        {"capacity_bytes", s.buffer.capacity_chunks * s.buffer.chunk_bytes},
        {"cache_dirty_bytes", s.backlog_pages * 4096}}},
      {"file", s.file},
      {"files", s.files},
      {"written_bytes", s.written_bytes},
      {"removed_packets", s.removed},
  };
}

std::string progress_line(const recorder_statistics& s, const recorder_statistics& before) {
  const double seconds = std::max(s.seconds - before.seconds, 1e-3);
  const std::uint64_t lost = s.port.dropped_full + s.port.dropped_memory +
                             s.port.dropped_malformed + dropped_by_policy(s) + s.lost_to_errors;
  return fmt::format(
      "{} received ({:.0f}/s), {} written ({}/s), {} dropped, buffer {} of {}", s.port.received,
      static_cast<double>(s.port.received - before.port.received) / seconds, s.written,
      human_bytes(static_cast<std::uint64_t>(
          static_cast<double>(s.written_bytes - before.written_bytes) / seconds)),
      lost, human_bytes(s.buffer.waiting_chunks * s.buffer.chunk_bytes),
      human_bytes(s.buffer.capacity_chunks * s.buffer.chunk_bytes));
}

std::string closing_account(const capture_names& names, const recorder_statistics& s) {
  const exhaustion_statistics& p = s.buffer.policy;
  std::string text = fmt::format("{} packets received from {} in {:.1f} s\n", s.port.received,
                                 names.source, s.seconds);
  const std::string files =
      s.files > 1 ? fmt::format("{} files up to {}", s.files, s.file) : s.file;
  text +=
      fmt::format("  {:>12}  written to {} ({})\n", s.written, files, human_bytes(s.written_bytes));
  text += row(s.port.dropped_full, "dropped by the kernel: its ring was full");
  text += row(s.port.dropped_memory, "dropped by forebay: no descriptor for them");
  text += row(s.port.dropped_malformed, "left out: their records make no sense, or are too long");
  text +=
      row(p.tail_drops, fmt::format("dropped by forebay: the buffer was full ({})", names.policy));
  text += row(p.head_drops, "given up by forebay: the oldest in a full buffer (head-drop)");
  text += row(p.refusals, "dropped by forebay: came in spite of a full buffer (back-pressure)");
  text += row(s.lost_to_errors, "not written: the file could not take them");
  text += row(s.unwanted, "left out: after the last one asked for");
  text += row(waiting_packets(s), "unaccounted for");
  if (s.removed != 0) {
    text += fmt::format("  {} of those written were in files that made room for newer ones\n",
                        s.removed);
  }
  if (s.port.dropped_interface != 0) {
    text += fmt::format("  {} more were dropped by {} itself\n", s.port.dropped_interface,
                        names.source);
  }
  return text;
}

void answer_capture_client(int listener, const json& answer) {
  const auto client = accept_connection(listener);
  if (!client) return;
  const std::string text = answer.dump();
  std::array<std::byte, 4> length{};
  for (unsigned i = 0; i < 4; ++i) length[i] = static_cast<std::byte>(text.size() >> (24 - 8 * i));
  // Who does not wait for the answer does not get it.
  if (send_all(client->get(), length)) {
    static_cast<void>(send_all(client->get(), std::as_bytes(std::span(text))));
  }
}

std::expected<json, std::string> ask_capture(const std::string& socket) {
  const auto stranger = [&] {
    return std::unexpected(
        fmt::format("{}: not the socket of a capture, or one that is ending", socket));
  };
  endpoint where;
  where.path = socket;
  const auto connected = connect_to(where);
  if (!connected) {
    return std::unexpected(fmt::format("{}: {}; name the socket that forebay capture was given",
                                       socket, connected.error().message()));
  }
  set_receive_timeout(connected->get(), answer_timeout_ms);
  std::array<std::byte, 4> raw{};
  if (!receive_all(connected->get(), raw)) return stranger();
  std::uint32_t length = 0;
  for (const std::byte b : raw) length = length << 8 | static_cast<std::uint32_t>(b);
  if (length > answer_bytes_max) return stranger();
  std::string text(length, '\0');
  if (!receive_all(connected->get(), std::as_writable_bytes(std::span(text)))) return stranger();
  json answer = json::parse(text, nullptr, false);
  if (answer.is_discarded() || !answer.contains("received")) return stranger();
  return answer;
}

void print_capture_screen(const json& before, const json& after) {
  const double seconds =
      std::max(after["seconds"].get<double>() - before["seconds"].get<double>(), 1e-3);
  const auto rate = [&](const char* key) {
    return static_cast<double>(number(after, key) - number(before, key)) / seconds;
  };
  fmt::print("capture of {}   up {:.0f} s   writing {} (file {})\n",
             after["source"].get<std::string>(), after["seconds"].get<double>(),
             after["file"].get<std::string>(), number(after, "files"));
  fmt::print("  received   {:>14}  {:>12.0f} /s\n", number(after, "received"), rate("received"));
  fmt::print("  written    {:>14}  {:>12.0f} /s  {:>10} /s\n", number(after, "written"),
             rate("written"), human_bytes(static_cast<std::uint64_t>(rate("written_bytes"))));
  fmt::print("  waiting    {:>14}\n", number(after, "waiting"));
  const json& buffer = after["buffer"];
  const json& policy = after["policy"];
  fmt::print("  buffer     {:>14} of {}, and {} on the way to the disk; when full: {}\n",
             human_bytes(number(buffer, "used_bytes")),
             human_bytes(number(buffer, "capacity_bytes")),
             human_bytes(number(buffer, "cache_dirty_bytes")), policy["name"].get<std::string>());
  for (const auto& [why, packets] : after["dropped"].items()) {
    if (packets.get<std::uint64_t>() != 0) {
      fmt::print("  DROPPED    {:>14}  {}\n", packets.get<std::uint64_t>(), why);
    }
  }
  for (const char* what : {"raised", "lowered", "expansions", "waits"}) {
    if (number(policy, what) != 0) fmt::print("  {:<10} {:>14}\n", what, number(policy, what));
  }
}

}  // namespace forebay::tool
