// Filters in tcpdump's language for XDP: libpcap makes a classic BPF program of one
// (net/packet_filter.h), which the kernel runs for packet sockets but not for XDP. Here it is
// translated into the instructions that XDP has, with the bounds that the kernel wants to see.
//
// A value; any thread.
#pragma once

#include <linux/bpf.h>

#include <span>
#include <vector>

#include "forebay/os/packet_socket.h"

namespace forebay {

// A whole XDP program: a packet for which `filter` answers 0 goes to the machine (XDP_PASS); for
// any other `taken` is run, which ends the program, and finds the context in r6. Errors: EINVAL for
// what is no classic program; ENOTSUP for one that asks for more than the packet's bytes and
// length, as those do that libpcap compiles for a certain interface.
result<std::vector<bpf_insn>> translate_filter(std::span<const filter_instruction> filter,
                                               std::span<const bpf_insn> taken);

}  // namespace forebay
