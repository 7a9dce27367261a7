// Recorder: what comes in at a port goes to files, and what does not get there is accounted for.
//
//    port ──> [receive thread] ──> record_buffer ──> [write thread: a loop] ──> record_file(s)
//
//    received = written + waiting + lost: by the kernel, by the port, by the buffer's policy,
//               by files that could not be written, after the last one asked for
//
// Files follow each other by size or time, in a ring of so many if that is wanted: the oldest is
// removed. Each is a whole capture with an account at its end. One that is full is made durable
// while the next is being written.
//
// It ends by stop(), with the port, after so many packets, or when a file cannot be written. What
// was received until then is written.
//
// Thread-safety: statistics() is any thread's; the rest belongs to the thread that created it.
#pragma once

#include <array>
#include <atomic>
#include <deque>
#include <functional>
#include <future>
#include <memory>
#include <semaphore>
#include <string>
#include <thread>

#include "forebay/cache/page_cache.h"
#include "forebay/net/packet_pool.h"
#include "forebay/net/port.h"
#include "forebay/net/record_buffer.h"
#include "forebay/net/record_file.h"
#include "forebay/os/mutex.h"
#include "forebay/ring/loop.h"

namespace forebay {

struct recorder_options {
  std::string path;
  pcapng::section section;
  std::string filter;  // as it is told in the files
  std::uint32_t snap_bytes = 262144;
  std::uint64_t packets_max = 0;     // 0, here and below: no limit
  std::uint64_t file_bytes_max = 0;  // at least file_bytes_min
  std::uint64_t file_ns_max = 0;
  unsigned files_max = 0;         // the oldest is removed
  record_buffer::options buffer;  // its packet_bytes_max is set here
  std::size_t cache_bytes = std::size_t{16} << 20;
  record_file::device_over device_over = {};  // for tests: called for each file
  // Called on the receive or write thread with a line about what has happened.
  std::function<void(const std::string&)> notify = [](const std::string&) {};
};

struct recorder_statistics {
  port_statistics port;
  record_buffer_statistics buffer;
  std::uint64_t written = 0;         // packets, in files
  std::uint64_t written_bytes = 0;   // of the files
  std::uint64_t lost_to_errors = 0;  // packets that a file did not take
  std::uint64_t removed = 0;         // packets in files that were removed for newer ones
  std::uint64_t unwanted = 0;        // packets after the last one asked for
  std::uint64_t files = 0;
  std::uint64_t backlog_pages = 0;  // of the cache, not on the disk yet
  std::string file;                 // the newest
  double seconds = 0;
};

class recorder {
 public:
  static constexpr std::uint64_t file_bytes_min = 1u << 20;

  // Makes the first file. Errors: those of record_file, record_buffer and page_cache.
  static result<std::unique_ptr<recorder>> create(port& from, const recorder_options& opts);
  // Ends it first, if need be.
  ~recorder();
  recorder(const recorder&) = delete;
  recorder& operator=(const recorder&) = delete;

  // Errors: of io_uring, EAGAIN for threads.
  result<> start();

  // Readable once it has ended by itself.
  int ended_fd() const noexcept { return ended_.get(); }

  // Receives nothing more. Any thread.
  void stop() noexcept;

  // Waits until everything is written. Error: what kept a file from being written, which is
  // failed_path().
  result<> finish();
  const std::string& failed_path() const noexcept { return failed_path_; }

  recorder_statistics statistics() const;

 private:
  static constexpr std::size_t burst = 64;

  recorder(port& from, const recorder_options& opts, unique_fd ended, unique_fd stopped,
           std::unique_ptr<page_cache> cache, std::unique_ptr<record_buffer> buffer);

  // The receive thread.
  void receive_all() noexcept;
  std::size_t receive_some(std::uint64_t now_ns) noexcept;
  void drain() noexcept;
  bool link_is_up() noexcept;
  void publish_statistics(std::uint64_t now_ns) noexcept;
  std::uint64_t period_of(std::uint64_t stamp_ns) noexcept;

  // The write thread.
  void write_all(std::promise<std::error_code>* ready) noexcept;
  task<> write_chunks();
  task<> write_chunk(const record_chunk& c);
  task<> append(std::span<const std::byte> blocks, std::uint64_t packets);
  bool has_room_for(const record_chunk& c) const;
  task<> change_file();
  task<> finish_file(std::unique_ptr<record_file> file);
  result<> open_file();
  std::string path_of(std::uint64_t number) const;
  void failed(const std::string& path, std::error_code e) noexcept;
  std::vector<std::byte> head() const;
  std::vector<std::byte> account() const;

  port& port_;
  const recorder_options options_;
  const unique_fd ended_;    // eventfd, for who waits
  const unique_fd stopped_;  // eventfd, for the receive thread
  const std::unique_ptr<page_cache> cache_;
  const std::unique_ptr<record_buffer> buffer_;
  std::thread receiver_;
  std::thread writer_;
  std::uint64_t started_ns_ = 0;  // monotonic
  std::uint64_t started_utc_ns_ = 0;

  std::atomic<bool> stopping_{false};

  // Of the receive thread.
  std::array<packet, burst> burst_;
  std::uint64_t wanted_;  // packets that may still be taken
  std::uint64_t first_stamp_ns_ = 0;
  std::uint64_t received_period_ = 0;
  std::uint64_t published_at_ns_ = 0;
  bool was_up_ = true;

  // Of the write thread, but for the counters.
  std::unique_ptr<loop> loop_;
  std::unique_ptr<record_file> file_;
  std::uint64_t period_ = 0;
  std::deque<std::pair<std::string, std::uint64_t>>
      kept_;  // files and their packets, the oldest first
  task_group closing_;
  std::error_code error_;
  std::string failed_path_;
  std::binary_semaphore may_go_{0};  // nobody touches the loop any more
  std::atomic<std::uint64_t> appended_packets_{0};
  std::atomic<std::uint64_t> appended_bytes_{0};
  std::atomic<std::uint64_t> lost_to_errors_{0};
  std::atomic<std::uint64_t> removed_{0};
  std::atomic<std::uint64_t> unwanted_{0};
  std::atomic<std::uint64_t> files_{0};

  mutable mutex published_lock_;
  port_statistics published_ FOREBAY_GUARDED_BY(published_lock_);
  std::string file_name_ FOREBAY_GUARDED_BY(published_lock_);
};

}  // namespace forebay
