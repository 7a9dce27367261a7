#include "forebay/net/packet_filter.h"

#include <pcap/pcap.h>

#include <array>
#include <bit>
#include <memory>
#include <mutex>

namespace forebay {
namespace {

using pcap_handle = std::unique_ptr<pcap_t, decltype(&::pcap_close)>;

std::mutex& compiler_lock() {
  static std::mutex lock;
  return lock;
}

std::expected<std::vector<filter_instruction>, std::string> compile(pcap_t* handle,
                                                                    const std::string& text) {
  bpf_program made{};
  if (::pcap_compile(handle, &made, text.c_str(), 1, PCAP_NETMASK_UNKNOWN) != 0) {
    std::string message = ::pcap_geterr(handle);
    for (char& c : message) c = c == '\n' ? ' ' : c;
    return std::unexpected(message);
  }
  std::vector<filter_instruction> program(made.bf_len);
  for (unsigned i = 0; i < made.bf_len; ++i) {
    const bpf_insn& b = made.bf_insns[i];
    program[i] = {.code = b.code, .jump_true = b.jt, .jump_false = b.jf, .k = b.k};
  }
  ::pcap_freecode(&made);
  return program;
}

}  // namespace

std::expected<packet_filter, std::string> packet_filter::for_interface(const std::string& text,
                                                                       const std::string& interface,
                                                                       std::uint32_t snap_bytes) {
  const std::scoped_lock hold(compiler_lock());
  std::array<char, PCAP_ERRBUF_SIZE> problem{};
  // Of an open interface libpcap knows where the kernel keeps the VLAN tag.
  const pcap_handle handle(::pcap_create(interface.c_str(), problem.data()), &::pcap_close);
  if (handle == nullptr) return std::unexpected(std::string(problem.data()));
  ::pcap_set_snaplen(handle.get(), static_cast<int>(snap_bytes));
  ::pcap_set_buffer_size(handle.get(), 1 << 18);
  if (::pcap_activate(handle.get()) < 0) {
    return std::unexpected(std::string(::pcap_geterr(handle.get())));
  }
  auto program = compile(handle.get(), text);
  if (!program) return std::unexpected(program.error());
  packet_filter made;
  made.program_ = std::move(*program);
  return made;
}

std::expected<packet_filter, std::string> packet_filter::for_packets(const std::string& text,
                                                                     pcapng::link_type link,
                                                                     std::uint32_t snap_bytes) {
  const std::scoped_lock hold(compiler_lock());
  // The link types are numbers of libpcap's list, but for this one, which it has by another.
  const int type = link == pcapng::link_type::raw_ip ? DLT_RAW : static_cast<int>(link);
  const pcap_handle handle(::pcap_open_dead(type, static_cast<int>(snap_bytes)), &::pcap_close);
  if (handle == nullptr) return std::unexpected(std::string("no memory for a filter"));
  auto program = compile(handle.get(), text);
  if (!program) return std::unexpected(program.error());
  packet_filter made;
  made.program_ = std::move(*program);
  return made;
}

bool packet_filter::matches(std::span<const std::byte> data,
                            std::uint32_t wire_bytes) const noexcept {
  if (program_.empty()) return true;
  static_assert(sizeof(bpf_insn) == sizeof(filter_instruction));
  return ::bpf_filter(reinterpret_cast<const bpf_insn*>(program_.data()),
                      reinterpret_cast<const unsigned char*>(data.data()), wire_bytes,
                      static_cast<unsigned>(data.size())) != 0;
}

}  // namespace forebay
