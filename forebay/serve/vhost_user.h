// The wire format of the vhost-user protocol (QEMU docs/interop/vhost-user.rst), as far as a block
// device's back-end has to do with it. Little-endian, as it lies in memory.
#pragma once

#include <cstddef>
#include <cstdint>

namespace forebay::vhost {

enum class message : std::uint32_t {
  get_features = 1,
  set_features = 2,
  set_owner = 3,
  reset_owner = 4,
  set_mem_table = 5,
  set_vring_num = 8,
  set_vring_addr = 9,
  set_vring_base = 10,
  get_vring_base = 11,
  set_vring_kick = 12,
  set_vring_call = 13,
  set_vring_err = 14,
  get_protocol_features = 15,
  set_protocol_features = 16,
  get_queue_num = 17,
  set_vring_enable = 18,
  set_backend_req_fd = 21,
  get_config = 24,
  set_config = 25,
  get_inflight_fd = 31,
  set_inflight_fd = 32,
  reset_device = 34,
  get_max_mem_slots = 36,
  add_mem_reg = 37,
  rem_mem_reg = 38,
};

// From the back-end to the front-end, over the socket of set_backend_req_fd.
enum class backend_message : std::uint32_t {
  config_change = 2,
};

inline constexpr std::uint64_t protocol_features_bit = std::uint64_t{1} << 30;  // of the features

// Protocol features.
inline constexpr std::uint64_t protocol_mq = 1u << 0;
inline constexpr std::uint64_t protocol_reply_ack = 1u << 3;
inline constexpr std::uint64_t protocol_backend_req = 1u << 5;
inline constexpr std::uint64_t protocol_config = 1u << 9;
inline constexpr std::uint64_t protocol_inflight = 1u << 12;
inline constexpr std::uint64_t protocol_reset_device = 1u << 13;
inline constexpr std::uint64_t protocol_mem_slots = 1u << 15;

struct header {
  std::uint32_t request = 0;
  std::uint32_t flags = 0;
  std::uint32_t size = 0;  // bytes that follow
};
static_assert(sizeof(header) == 12);
inline constexpr std::uint32_t version = 1;
inline constexpr std::uint32_t version_mask = 3;
inline constexpr std::uint32_t flag_reply = 1u << 2;
inline constexpr std::uint32_t flag_need_reply = 1u << 3;

inline constexpr std::size_t payload_max = 1024;  // of the messages above
inline constexpr std::size_t message_fds_max = 8;

struct vring_state {
  std::uint32_t index = 0;
  std::uint32_t num = 0;
};
static_assert(sizeof(vring_state) == 8);

struct vring_addr {
  std::uint32_t index = 0;
  std::uint32_t flags = 0;
  std::uint64_t descriptors = 0;
  std::uint64_t used = 0;
  std::uint64_t available = 0;
  std::uint64_t log = 0;
};
static_assert(sizeof(vring_addr) == 40);

// The payload that comes with a descriptor of a vring.
inline constexpr std::uint64_t vring_index_mask = 0xff;
inline constexpr std::uint64_t vring_no_fd = 1u << 8;

struct memory_region {
  std::uint64_t guest_physical = 0;
  std::uint64_t bytes = 0;
  std::uint64_t user_address = 0;
  std::uint64_t file_offset = 0;
};
static_assert(sizeof(memory_region) == 32);
inline constexpr std::size_t table_regions_max = 8;  // of set_mem_table

struct memory_table {
  std::uint32_t count = 0;
  std::uint32_t unused = 0;
  // memory_region[count]
};
static_assert(sizeof(memory_table) == 8);

struct single_region {
  std::uint64_t unused = 0;
  memory_region region;
};
static_assert(sizeof(single_region) == 40);

struct config_space {
  std::uint32_t offset = 0;
  std::uint32_t bytes = 0;
  std::uint32_t flags = 0;
  // the contents
};
static_assert(sizeof(config_space) == 12);
inline constexpr std::uint32_t config_bytes_max = 256;

struct inflight {
  std::uint64_t bytes = 0;
  std::uint64_t offset = 0;
  std::uint16_t queues = 0;
  std::uint16_t queue_size = 0;
  std::uint32_t unused = 0;
};
inline constexpr std::size_t inflight_bytes = 20;  // of it on the wire

}  // namespace forebay::vhost
