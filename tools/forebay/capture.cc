// forebay capture: records the packets of an interface, and says what became of every one.

#include <charconv>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <map>
#include <thread>

#include "forebay/base/version.h"
#include "forebay/memory/arena.h"
#include "forebay/net/file_port.h"
#include "forebay/net/packet_port.h"
#include "forebay/net/recorder.h"
#include "forebay/net/xdp_port.h"
#include "forebay/os/poll.h"
#include "forebay/os/socket.h"
#include "tools/forebay/capture_statistics.h"
#include "tools/forebay/command.h"

namespace forebay::tool {
namespace {

constexpr std::uint32_t snap_bytes_max = 262144;
constexpr std::uint64_t buffer_bytes_min = 16u << 20;
constexpr std::uint64_t timed_buffer_bytes_max = std::uint64_t{1} << 30;

const std::map<std::string, exhaustion_policy> policies = {
    {"tail-drop", exhaustion_policy::tail_drop},
    {"head-drop", exhaustion_policy::head_drop},
    {"back-pressure", exhaustion_policy::back_pressure},
    {"expand", exhaustion_policy::expand},
    {"block", exhaustion_policy::block},
};

struct capture_options {
  std::string interface;
  std::string port = "packet";
  std::string input;
  std::string output;
  std::vector<std::string> filter;
  std::uint32_t snap_bytes = snap_bytes_max;
  std::uint64_t packets = 0;
  std::uint64_t file_bytes = 0;
  std::uint64_t file_seconds = 0;
  unsigned files = 0;
  std::string buffer = "64M";
  std::uint64_t buffer_limit_bytes = 0;
  std::string when_full = "block";
  bool no_promiscuous = false;
  bool incoming_only = false;
  std::string socket;
  std::string stat;
  bool as_json = false;
};

// How the memory that --buffer speaks of is divided, and how old packets may get in it.
struct memory_plan {
  std::uint32_t ring_block_bytes = 0;
  std::uint32_t ring_blocks = 4;
  std::size_t queue_bytes = 0;
  std::size_t cache_bytes = 0;
  std::uint64_t age_limit_ns = UINT64_MAX;
};

memory_plan divide(std::uint64_t bytes) {
  memory_plan m;
  // The ring is for the time until the receiving thread gets a CPU, so it is no small part.
  const std::uint64_t ring =
      std::clamp<std::uint64_t>(std::bit_floor(bytes / 4), 2u << 20, 256u << 20);
  m.ring_block_bytes = static_cast<std::uint32_t>(std::min<std::uint64_t>(ring / 4, 1u << 20));
  m.ring_blocks = static_cast<std::uint32_t>(ring / m.ring_block_bytes);
  m.cache_bytes = std::clamp<std::uint64_t>(bytes / 4, 8u << 20, 256u << 20);
  m.queue_bytes = bytes - ring - m.cache_bytes;
  return m;
}

// A size (64M) or a time (2s). A message if it is neither.
std::optional<std::string> plan_memory(const std::string& text, memory_plan& plan) {
  if (text.ends_with('s')) {
    double seconds = 0;
    const char* const last = text.data() + text.size() - 1;
    const auto [end, error] = std::from_chars(text.data(), last, seconds);
    if (error != std::errc{} || end != last || !(seconds > 0) || seconds > 3600) {
      return fmt::format("--buffer {}: must be a size as 64M, or seconds as 2s (an hour at most)",
                         text);
    }
    plan = divide(std::clamp(memory_limit_bytes() / 4, buffer_bytes_min, timed_buffer_bytes_max));
    plan.age_limit_ns = static_cast<std::uint64_t>(seconds * 1e9);
    return std::nullopt;
  }
  std::string size = text;
  try {
    size = CLI::AsSizeValue(false)(size).empty() ? size : "";
  } catch (const CLI::Error&) {
    size.clear();
  }
  std::uint64_t bytes = 0;
  const auto [end, error] = std::from_chars(size.data(), size.data() + size.size(), bytes);
  if (size.empty() || error != std::errc{} || end != size.data() + size.size()) {
    return fmt::format("--buffer {}: must be a size as 64M, or seconds as 2s", text);
  }
  if (bytes < buffer_bytes_min) {
    return fmt::format("--buffer {}: too small; at least {}", text, human_bytes(buffer_bytes_min));
  }
  if (bytes > memory_limit_bytes()) {
    return fmt::format("--buffer {}: larger than the memory there is ({}); choose less", text,
                       human_bytes(memory_limit_bytes()));
  }
  plan = divide(bytes);
  return std::nullopt;
}

std::optional<std::string> check_options(const capture_options& o) {
  if (o.interface.empty() == o.input.empty()) {
    return "name an interface with -i, or a capture file with -r";
  }
  if (o.output.empty()) return "name the file to write with -w";
  if (o.file_bytes != 0 && o.file_bytes < recorder::file_bytes_min) {
    return fmt::format("-C {}: too small; at least {}", human_bytes(o.file_bytes),
                       human_bytes(recorder::file_bytes_min));
  }
  if (o.files != 0 && o.file_bytes == 0 && o.file_seconds == 0) {
    return "-W goes with -C or -G, which say when a file is full";
  }
  if (!policies.contains(o.when_full)) {
    return fmt::format(
        "--when-full {}: no such policy; choose block, tail-drop, head-drop, back-pressure or "
        "expand",
        o.when_full);
  }
  std::error_code ignored;
  if (!o.input.empty() && std::filesystem::equivalent(o.input, o.output, ignored)) {
    return fmt::format("{}: cannot be read and written at once; choose another file", o.output);
  }
  return std::nullopt;
}

std::string output_problem(const std::string& path, std::error_code e) {
  if (e == errc::in_use) return fmt::format("{}: in use by another process", path);
  if (e == errc::not_a_device) return fmt::format("{}: not a regular file; choose another", path);
  if (e == std::errc::no_such_file_or_directory) {
    return fmt::format("{}: no such directory to write in", path);
  }
  if (e == std::errc::no_space_on_device) {
    return fmt::format("{}: the disk is full; the file ends with the last packet that it took",
                       path);
  }
  return fmt::format("{}: {}", path, e.message());
}

// Where packets come from, with the memory that they are made of.
struct source {
  std::unique_ptr<arena> memory;
  std::unique_ptr<packet_pool> pool;
  std::unique_ptr<port> from;
  file_port* file = nullptr;  // if it is one
};

std::optional<std::string> open_interface(const capture_options& o, const memory_plan& plan,
                                          const std::string& filter, source& s) {
  const auto at = net_interface::find(o.interface);
  if (!at) return fmt::format("{}: no such interface; 'ip link' lists them", o.interface);
  if (!has_capability(capability::net_raw)) {
    return fmt::format(
        "{}: capturing needs the capability {}; run it as root, or give it to the "
        "program (setcap cap_net_raw+ep)",
        o.interface, name_of(capability::net_raw));
  }
  auto compiled = packet_filter::for_interface(filter, o.interface, o.snap_bytes);
  if (!compiled) return fmt::format("the filter '{}': {}", filter, compiled.error());
  auto opened = packet_port::open(*at,
                                  {.block_bytes = plan.ring_block_bytes,
                                   .blocks = plan.ring_blocks,
                                   .promiscuous = !o.no_promiscuous,
                                   .outgoing = !o.incoming_only,
                                   .filter = compiled->program()},
                                  *s.pool);
  if (opened) {
    s.from = std::move(*opened);
    return std::nullopt;
  }
  if (opened.error() == std::errc::not_supported) {
    return fmt::format("{}: its link type is not one that forebay knows (Ethernet, IP, radiotap)",
                       o.interface);
  }
  return fmt::format("{}: {}", o.interface, opened.error().message());
}

// What it takes does not reach the machine.
std::optional<std::string> open_xdp(const capture_options& o, const memory_plan& plan,
                                    const std::string& filter, source& s) {
  const auto at = net_interface::find(o.interface);
  if (!at) return fmt::format("{}: no such interface; 'ip link' lists them", o.interface);
  const auto bytes = xdp_port::buffer_bytes_for(at->mtu_bytes);
  if (!bytes) return fmt::format("{}: its MTU is too large for --port xdp", o.interface);
  // As much memory as the other port's ring has, in frames that the kernel receives into; and those
  // that are on their way to the queue.
  const std::uint64_t ring = std::uint64_t{plan.ring_block_bytes} * plan.ring_blocks;
  const std::uint32_t queues = std::min(receive_queues(*at), xdp_port::queues_max);
  const auto frames = static_cast<std::uint32_t>(std::bit_floor(ring / *bytes / queues));
  const std::size_t count = std::size_t{frames} * queues * 5 / 4;
  auto memory = arena::create({.bytes = count * *bytes + (8u << 20)});
  if (!memory) return fmt::format("no memory for packets: {}", memory.error().message());
  s.memory = std::move(*memory);
  auto pool = packet_pool::create(*s.memory, xdp_port::pool_options("capture", *bytes, count));
  if (!pool) return fmt::format("no memory for packets: {}", pool.error().message());
  s.pool = std::move(*pool);
  auto compiled = packet_filter::for_packets(filter, pcapng::link_type::ethernet, o.snap_bytes);
  if (!compiled) return fmt::format("the filter '{}': {}", filter, compiled.error());
  const bool all = filter.empty();
  auto opened =
      xdp_port::open(*at,
                     {.receive_frames = frames,
                      .transmit_frames = 64,
                      .promiscuous = !o.no_promiscuous,
                      .filter = all ? std::span<const filter_instruction>() : compiled->program()},
                     *s.memory, *s.pool);
  if (!opened) {
    if (opened.error() == std::errc::operation_not_permitted) {
      return fmt::format("{}: --port xdp needs CAP_NET_ADMIN, CAP_BPF and CAP_NET_RAW",
                         o.interface);
    }
    return fmt::format("{}: {}", o.interface, opened.error().message());
  }
  for (const std::string& r : (*opened)->remarks()) fmt::print(stderr, "forebay: {}\n", r);
  fmt::print(stderr, "forebay: AF_XDP, {}: what is captured does not reach this machine\n",
             to_string((*opened)->mode()));
  s.from = std::move(*opened);
  return std::nullopt;
}

std::optional<std::string> open_file(const capture_options& o, const std::string& filter,
                                     source& s) {
  auto opened = file_port::open(o.input, "", *s.pool);
  if (!opened) {
    if (opened.error() == errc::corrupt) {
      return fmt::format("{}: not a pcap or pcapng file", o.input);
    }
    if (opened.error() == std::errc::not_supported) {
      return fmt::format("{}: its link type is not one that forebay knows (Ethernet, IP, radiotap)",
                         o.input);
    }
    return fmt::format("{}: {}", o.input, opened.error().message());
  }
  auto compiled = packet_filter::for_packets(filter, (*opened)->link(), o.snap_bytes);
  if (!compiled) return fmt::format("the filter '{}': {}", filter, compiled.error());
  (*opened)->set_filter(std::move(*compiled));
  s.file = opened->get();
  s.from = std::move(*opened);
  return std::nullopt;
}

std::optional<std::string> open_source(const capture_options& o, const memory_plan& plan,
                                       const std::string& filter, source& s) {
  if (o.input.empty() && o.port == "xdp") return open_xdp(o, plan, filter, s);
  // An interface's packets lie in its ring, so descriptors are all that is needed.
  const bool copies = !o.input.empty();
  auto memory = arena::create({.bytes = copies ? 32u << 20 : 8u << 20});
  if (!memory) return fmt::format("no memory for packets: {}", memory.error().message());
  s.memory = std::move(*memory);
  auto pool = packet_pool::create(
      *s.memory,
      {.name = "capture", .buffer_bytes = copies ? snap_bytes_max + 128 : 256, .count = 64});
  if (!pool) return fmt::format("no memory for packets: {}", pool.error().message());
  s.pool = std::move(*pool);
  return copies ? open_file(o, filter, s) : open_interface(o, plan, filter, s);
}

std::string system_name() {
  std::ifstream release("/proc/sys/kernel/osrelease");
  std::string text;
  std::getline(release, text);
  return "Linux " + text;
}

recorder_options recording(const capture_options& o, const memory_plan& plan,
                           const std::string& filter) {
  recorder_options r;
  r.path = o.output;
  r.section = {.system = system_name(), .application = fmt::format("forebay {}", version)};
  r.filter = filter;
  r.snap_bytes = o.snap_bytes;
  r.packets_max = o.packets;
  r.file_bytes_max = o.file_bytes;
  r.file_ns_max = o.file_seconds * 1'000'000'000;
  r.files_max = o.files;
  r.buffer.bytes = plan.queue_bytes;
  r.buffer.limit_bytes =
      o.buffer_limit_bytes != 0 ? o.buffer_limit_bytes : std::uint64_t{plan.queue_bytes} * 4;
  r.buffer.when_full = policies.at(o.when_full);
  r.buffer.age_limit_ns = plan.age_limit_ns;
  r.cache_bytes = plan.cache_bytes;
  r.notify = [](const std::string& line) { fmt::print(stderr, "forebay: {}\n", line); };
  return r;
}

// Until a signal comes or the recorder has ended by itself.
void watch(recorder& r, const capture_names& names, int signals, int listener) {
  constexpr std::chrono::seconds progress_every(1);
  const bool shows = is_terminal(2);
  recorder_statistics before;
  auto next = std::chrono::steady_clock::now() + progress_every;
  for (;;) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
        next - std::chrono::steady_clock::now());
    const std::array<int, 3> fds{signals, r.ended_fd(), listener};
    const auto ready = wait_readable(fds, std::max(static_cast<int>(left.count()), 0));
    if (!ready || (*ready & 2) != 0) break;
    if ((*ready & 1) != 0) {
      static_cast<void>(wait_for_signal(signals));  // it is not pending any more
      break;
    }
    if ((*ready & 4) != 0) answer_capture_client(listener, capture_json(names, r.statistics()));
    if (std::chrono::steady_clock::now() < next) continue;
    next += progress_every;
    const recorder_statistics now = r.statistics();
    if (shows) fmt::print(stderr, "\r{}   ", progress_line(now, before));
    before = now;
  }
  if (shows) fmt::print(stderr, "\n");
}

// What was wrong with a file that was read; the exit status.
int judge_input(const file_port& file) {
  const capture_reader::counters seen = file.seen();
  if (file.read_error()) {
    return complain(fmt::format("{}: {}", file.name(), file.read_error().message()));
  }
  if (seen.damaged) {
    return complain(fmt::format("{}: damaged; the last {} of it cannot be read", file.name(),
                                human_bytes(seen.unreadable)));
  }
  if (seen.cut_short) {
    fmt::print(stderr, "forebay: note: {}: ends in the middle of a packet\n", file.name());
  }
  return 0;
}

int record(const capture_options& o, const memory_plan& plan) {
  std::string filter;
  for (const std::string& word : o.filter) filter += (filter.empty() ? "" : " ") + word;
  source from;
  if (auto problem = open_source(o, plan, filter, from)) return complain(*problem);
  // Blocked before there are threads.
  auto signals = make_signal_fd({SIGINT, SIGTERM, SIGHUP});
  if (!signals) return complain(fmt::format("no signals: {}", signals.error().message()));
  std::signal(SIGPIPE, SIG_IGN);
  unique_fd listener;
  if (!o.socket.empty()) {
    auto opened = listen_unix(o.socket);
    if (!opened) return complain(fmt::format("{}: {}", o.socket, opened.error().message()));
    listener = std::move(*opened);
  }
  auto made = recorder::create(*from.from, recording(o, plan, filter));
  if (!made) {
    if (listener) remove_socket_file(o.socket);
    return complain(output_problem(o.output, made.error()));
  }
  recorder& r = **made;
  const capture_names names{from.from->name(), o.when_full};
  if (auto started = r.start(); !started) {
    return complain(fmt::format("cannot start: {}", started.error().message()));
  }
  fmt::print(stderr, "forebay: capturing from {} to {}\n", names.source, r.statistics().file);
  watch(r, names, signals->get(), listener.get());
  unblock_signals({SIGINT, SIGTERM, SIGHUP});  // a second one ends it at once
  const auto finished = r.finish();
  if (listener) remove_socket_file(o.socket);
  const recorder_statistics s = r.statistics();
  if (o.as_json) {
    fmt::print("{}\n", capture_json(names, s).dump(2));
  } else {
    fmt::print("{}", closing_account(names, s));
  }
  if (!finished) return complain(output_problem(r.failed_path(), finished.error()));
  if (from.file != nullptr) return judge_input(*from.file);
  if (from.from->state() == link_state::gone) {
    return complain(fmt::format("{}: the interface is gone", names.source));
  }
  return 0;
}

int show(const capture_options& o) {
  const auto first = ask_capture(o.stat);
  if (!first) return complain(first.error());
  if (o.as_json) {
    fmt::print("{}\n", first->dump(2));
    return 0;
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(500));
  const auto second = ask_capture(o.stat);
  if (!second) return complain(second.error());
  print_capture_screen(*first, *second);
  return 0;
}

int capture(const capture_options& o) {
  if (!o.stat.empty()) return show(o);
  if (auto problem = check_options(o)) return complain(*problem);
  memory_plan plan;
  if (auto problem = plan_memory(o.buffer, plan)) return complain(*problem);
  return record(o, plan);
}

}  // namespace

void add_capture(CLI::App& app, action& chosen) {
  auto o = std::make_shared<capture_options>();
  CLI::App* c = app.add_subcommand("capture", "Record the packets of an interface");
  c->add_option("-i,--interface", o->interface, "The interface to listen on")->type_name("IF");
  c->add_option("--port", o->port,
                "How to get at its packets: packet, or xdp, which takes them from the machine "
                "(packet)")
      ->type_name("KIND")
      ->check(CLI::IsMember({"packet", "xdp"}));
  c->add_option("-r,--read", o->input, "Read packets from a pcap or pcapng file instead")
      ->type_name("FILE");
  c->add_option("-w,--write", o->output, "The pcapng file to write")->type_name("FILE");
  c->add_option("FILTER", o->filter, "Which packets, in tcpdump's language (pcap-filter(7))");
  c->add_option("-s,--snap", o->snap_bytes, "Keep so many bytes of each packet (262144)")
      ->type_name("BYTES")
      ->check(CLI::Range(14u, snap_bytes_max));
  c->add_option("-c,--count", o->packets, "End after so many packets")->check(CLI::PositiveNumber);
  c->add_option("-C,--file-size", o->file_bytes, "Begin a new file when one has this size, as 1G")
      ->transform(CLI::AsSizeValue(false));
  c->add_option("-G,--file-seconds", o->file_seconds, "Begin a new file after so many seconds")
      ->check(CLI::Range(1u, 366u * 86400u));
  c->add_option("-W,--files", o->files, "Keep so many files, the newest")
      ->check(CLI::Range(1u, 1u << 20));
  c->add_option("--buffer", o->buffer,
                "Memory between the interface and the disk, as 64M, or for how long a packet may "
                "wait in it, as 2s (64M)")
      ->type_name("SIZE|SECONDSs");
  c->add_option("--when-full", o->when_full,
                "What happens when the buffer is full: block, tail-drop, head-drop, back-pressure "
                "or expand (block)")
      ->type_name("POLICY");
  c->add_option("--buffer-limit", o->buffer_limit_bytes,
                "How large the buffer may become by expand (four times what it is)")
      ->transform(CLI::AsSizeValue(false));
  c->add_flag("-p,--no-promiscuous", o->no_promiscuous,
              "Only what the interface would receive anyway");
  c->add_flag("--incoming", o->incoming_only, "Not what this machine sends");
  c->add_option("--socket", o->socket, "Let forebay capture --stat look, over this unix socket")
      ->type_name("PATH");
  c->add_option("--stat", o->stat, "Show what the capture with this --socket does")
      ->type_name("SOCKET");
  c->add_flag("--json", o->as_json, "The account, or what --stat shows, as JSON");
  c->footer(
      "Ctrl-C ends it: what was received is written, and an account of it printed.\n"
      "An example: forebay capture -i eth0 -w dns.pcapng -C 1G -W 10 udp port 53");
  c->callback([o, &chosen] { chosen = [o] { return capture(*o); }; });
}

}  // namespace forebay::tool
