#include "forebay/os/xdp_program.h"

#include <bpf/bpf.h>
#include <linux/bpf.h>
#include <linux/if_link.h>

#include <array>
#include <cstddef>
#include <vector>

#include "forebay/os/xdp_filter.h"

namespace forebay {
namespace {

// Gives the packet to its queue's socket if there is one, and to the machine otherwise; r6 is the
// context.
std::array<bpf_insn, 6> give_to_socket(int sockets_fd) noexcept {
  return {{
      // r2 = context->rx_queue_index
      {.code = BPF_LDX | BPF_W | BPF_MEM,
       .dst_reg = BPF_REG_2,
       .src_reg = BPF_REG_6,
       .off = offsetof(xdp_md, rx_queue_index),
       .imm = 0},
      // r1 = the table, in two instructions
      {.code = BPF_LD | BPF_DW,  // and BPF_IMM, which is 0
       .dst_reg = BPF_REG_1,
       .src_reg = BPF_PSEUDO_MAP_FD,
       .off = 0,
       .imm = sockets_fd},
      {.code = 0, .dst_reg = 0, .src_reg = 0, .off = 0, .imm = 0},
      // r3 = what is returned if there is no socket
      {.code = BPF_ALU64 | BPF_MOV | BPF_K,
       .dst_reg = BPF_REG_3,
       .src_reg = 0,
       .off = 0,
       .imm = XDP_PASS},
      {.code = BPF_JMP | BPF_CALL,
       .dst_reg = 0,
       .src_reg = 0,
       .off = 0,
       .imm = BPF_FUNC_redirect_map},
      {.code = BPF_JMP | BPF_EXIT, .dst_reg = 0, .src_reg = 0, .off = 0, .imm = 0},
  }};
}

// For every packet: r6 = context, then the above.
result<std::vector<bpf_insn>> take_all(std::span<const bpf_insn> taken) {
  std::vector<bpf_insn> all{{.code = BPF_ALU64 | BPF_MOV | BPF_X,
                             .dst_reg = BPF_REG_6,
                             .src_reg = BPF_REG_1,
                             .off = 0,
                             .imm = 0}};
  all.insert(all.end(), taken.begin(), taken.end());
  return all;
}

}  // namespace

result<xdp_program> xdp_program::attach(const net_interface& to, xdp_hook at, std::uint32_t last,
                                        std::span<const filter_instruction> filter) {
  unique_fd sockets(bpf_map_create(BPF_MAP_TYPE_XSKMAP, "forebay_xsk", sizeof(std::uint32_t),
                                   sizeof(int), last + 1, nullptr));
  if (!sockets) return fail_errno();
  const auto taken = give_to_socket(sockets.get());
  auto code = filter.empty() ? take_all(taken) : translate_filter(filter, taken);
  if (!code) return fail(code.error());
  const unique_fd program(
      bpf_prog_load(BPF_PROG_TYPE_XDP, "forebay_xdp", "BSD", code->data(), code->size(), nullptr));
  if (!program) return fail_errno();
  bpf_link_create_opts opts{};
  opts.sz = sizeof opts;
  opts.flags = at == xdp_hook::native ? XDP_FLAGS_DRV_MODE : XDP_FLAGS_SKB_MODE;
  unique_fd link(bpf_link_create(program.get(), to.index, BPF_XDP, &opts));
  if (!link) return fail_errno();
  return xdp_program(std::move(sockets), std::move(link));
}

result<> xdp_program::add(std::uint32_t queue, int socket) noexcept {
  if (bpf_map_update_elem(sockets_.get(), &queue, &socket, BPF_ANY) != 0) return fail_errno();
  return {};
}

void xdp_program::remove(std::uint32_t queue) noexcept {
  static_cast<void>(bpf_map_delete_elem(sockets_.get(), &queue));
}

}  // namespace forebay
