// The account of a capture: as JSON, as text, and over a unix socket from one forebay to another.
//
// On the wire: a client connects and is sent a length of 4 bytes, big-endian, and so many bytes of
// JSON.
#pragma once

#include <expected>
#include <nlohmann/json.hpp>
#include <string>

#include "forebay/net/recorder.h"

namespace forebay::tool {

// What a capture is told by, beside its statistics.
struct capture_names {
  std::string source;  // an interface or a file
  std::string policy;
};

nlohmann::ordered_json capture_json(const capture_names& names, const recorder_statistics& s);

// Packets that are in none of the account's places yet: 0 once it has ended.
std::uint64_t waiting_packets(const recorder_statistics& s);

// One line for a capture that runs; several for one that has ended.
std::string progress_line(const recorder_statistics& s, const recorder_statistics& before);
std::string closing_account(const capture_names& names, const recorder_statistics& s);

// Sends it to who has connected to the listening socket.
void answer_capture_client(int listener, const nlohmann::ordered_json& answer);
// Asks a running capture. Error: one line.
std::expected<nlohmann::ordered_json, std::string> ask_capture(const std::string& socket);
// The screen of `forebay capture --stat`; rates from the difference of two looks.
void print_capture_screen(const nlohmann::ordered_json& before,
                          const nlohmann::ordered_json& after);

}  // namespace forebay::tool
