#include "forebay/net/recorder.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <filesystem>

namespace forebay {
namespace {

constexpr int idle_ms = 100;
constexpr std::uint64_t publish_every_ns = 100'000'000;
constexpr unsigned bursts_between_looks = 16;
constexpr std::chrono::milliseconds pressure_pause(1);

std::uint64_t utc_ns() noexcept {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return static_cast<std::uint64_t>(
      std::chrono::duration_cast<std::chrono::nanoseconds>(now).count());
}

void add_relaxed(std::atomic<std::uint64_t>& counted, std::uint64_t more) noexcept {
  counted.fetch_add(more, std::memory_order_relaxed);  // relaxed: a statistic
}

}  // namespace

result<std::unique_ptr<recorder>> recorder::create(port& from, const recorder_options& opts) {
  recorder_options settled = opts;
  settled.buffer.packet_bytes_max = opts.snap_bytes;
  if (opts.file_bytes_max != 0) {
    // A file holds whole chunks: small ones fill it better.
    const std::size_t part = std::max<std::size_t>(
        opts.file_bytes_max / 4, pcapng::packet_block_bytes(settled.buffer.packet_bytes_max));
    settled.buffer.chunk_bytes_max = std::min(settled.buffer.chunk_bytes_max, part);
  }
  auto ended = make_event_fd();
  if (!ended) return fail(ended.error());
  auto stopped = make_event_fd();
  if (!stopped) return fail(stopped.error());
  auto buffer = record_buffer::create(settled.buffer);
  if (!buffer) return fail(buffer.error());
  auto cache = page_cache::create({.bytes = opts.cache_bytes});
  if (!cache) return fail(cache.error());
  std::unique_ptr<recorder> made(new recorder(from, settled, std::move(*ended), std::move(*stopped),
                                              std::move(*cache), std::move(*buffer)));
  if (auto r = made->open_file(); !r) return fail(r.error());
  return made;
}

recorder::recorder(port& from, const recorder_options& opts, unique_fd ended, unique_fd stopped,
                   std::unique_ptr<page_cache> cache, std::unique_ptr<record_buffer> buffer)
    : port_(from),
      options_(opts),
      ended_(std::move(ended)),
      stopped_(std::move(stopped)),
      cache_(std::move(cache)),
      buffer_(std::move(buffer)),
      wanted_(opts.packets_max != 0 ? opts.packets_max : UINT64_MAX) {}

recorder::~recorder() { static_cast<void>(finish()); }

result<> recorder::start() {
  started_ns_ = monotonic_clock::now_ns();
  started_utc_ns_ = utc_ns();
  std::promise<std::error_code> ready;
  std::future<std::error_code> outcome = ready.get_future();
  writer_ = std::thread(&recorder::write_all, this, &ready);
  if (const std::error_code e = outcome.get()) {
    writer_.join();
    return fail(e);
  }
  receiver_ = std::thread(&recorder::receive_all, this);
  return {};
}

void recorder::stop() noexcept {
  stopping_.store(true, std::memory_order_release);  // release: pairs with receive_all()
  signal_event_fd(stopped_.get());
}

result<> recorder::finish() {
  if (receiver_.joinable()) {
    stop();
    receiver_.join();
    may_go_.release();
    writer_.join();
  }
  return error_ ? fail(error_) : result<>{};
}

recorder_statistics recorder::statistics() const {
  recorder_statistics s;
  s.buffer = buffer_->statistics();
  s.written = value_of(appended_packets_);
  s.written_bytes = value_of(appended_bytes_);
  s.lost_to_errors = value_of(lost_to_errors_);
  s.removed = value_of(removed_);
  s.unwanted = value_of(unwanted_);
  s.files = value_of(files_);
  const page_cache_statistics c = cache_->statistics();
  s.backlog_pages = c.dirty_pages + c.writeback_pages;
  s.seconds =
      started_ns_ == 0 ? 0 : static_cast<double>(monotonic_clock::now_ns() - started_ns_) / 1e9;
  const scoped_lock hold(published_lock_);
  s.port = published_;
  s.file = file_name_;
  return s;
}

// ---- The receive thread ----

void recorder::publish_statistics(std::uint64_t now_ns) noexcept {
  published_at_ns_ = now_ns;
  const port_statistics now = port_.statistics();
  const scoped_lock hold(published_lock_);
  published_ = now;
}

// In which of the spans of file_ns_max a packet lies, counted from the first one; never back.
std::uint64_t recorder::period_of(std::uint64_t stamp_ns) noexcept {
  if (options_.file_ns_max == 0) return 0;
  if (first_stamp_ns_ == 0) first_stamp_ns_ = stamp_ns;
  if (stamp_ns > first_stamp_ns_) {
    received_period_ =
        std::max(received_period_, (stamp_ns - first_stamp_ns_) / options_.file_ns_max);
  }
  return received_period_;
}

// One burst into the buffer; how many packets it had.
std::size_t recorder::receive_some(std::uint64_t now_ns) noexcept {
  const std::size_t n = port_.receive(burst_);
  for (std::size_t i = 0; i < n; ++i) {
    const packet_buffer& p = *burst_[i];
    if (wanted_ == 0) {
      add_relaxed(unwanted_, 1);
      continue;
    }
    --wanted_;
    const std::size_t captured = std::min<std::size_t>(p.length(), options_.snap_bytes);
    const auto copy = [&p, captured](std::byte* to) noexcept {
      if (captured <= p.linear_length()) {
        std::memcpy(to, p.data(), captured);
      } else {
        static_cast<void>(p.copy_out(0, {to, captured}));  // it has so many
      }
    };
    buffer_->append(p.timestamp_ns(), captured, static_cast<std::uint32_t>(p.wire_length()),
                    period_of(p.timestamp_ns()), now_ns, copy);
  }
  packet_pool::release_burst(std::span(burst_).first(n));
  return n;
}

// False if there will be nothing more.
bool recorder::link_is_up() noexcept {
  const link_state s = port_.state();
  if (s == link_state::gone) return false;
  if ((s == link_state::up) != was_up_) {
    was_up_ = !was_up_;
    options_.notify(was_up_
                        ? fmt::format("{} is up again", port_.name())
                        : fmt::format("{} is down; waiting until it is up again", port_.name()));
  }
  return true;
}

void recorder::receive_all() noexcept {
  unsigned bursts = 0;
  std::uint64_t now_ns = monotonic_clock::now_ns();
  // acquire: pairs with stop() and failed().
  while (!stopping_.load(std::memory_order_acquire) && wanted_ != 0) {
    if (buffer_->under_pressure(now_ns)) {
      std::this_thread::sleep_for(pressure_pause);
    } else if (receive_some(now_ns) != 0) {
      if (++bursts % bursts_between_looks != 0) continue;
    } else {
      static_cast<void>(port_.wait(idle_ms, stopped_.get()));
      if (!link_is_up()) break;
    }
    now_ns = monotonic_clock::now_ns();
    buffer_->tick(now_ns);
    if (now_ns - published_at_ns_ > publish_every_ns) publish_statistics(now_ns);
  }
  drain();
  publish_statistics(monotonic_clock::now_ns());
  buffer_->close();
}

// What the port has already is taken, and waited for if there is no room now.
void recorder::drain() noexcept {
  buffer_->be_patient();
  port_.stop();
  while (!port_.drained()) {
    if (receive_some(monotonic_clock::now_ns()) == 0) static_cast<void>(port_.wait(1));
  }
}

// ---- The write thread ----

void recorder::write_all(std::promise<std::error_code>* ready) noexcept {
  auto made = loop::create();
  if (!made) {
    ready->set_value(made.error());
    return;
  }
  loop_ = std::move(*made);
  // Without registered memory every transfer pins its pages: slower, and otherwise the same.
  const bool registered = loop_->registered().add(cache_->memory()).has_value();
  struct starter : completion {
    recorder* self = nullptr;
    task_group group;
  };
  starter start;
  start.self = this;
  start.run = [](completion& c) noexcept {
    auto& s = static_cast<starter&>(c);
    if (!s.self->write_chunks().spawn(s.group)) std::terminate();
  };
  loop_->ready(start);
  ready->set_value({});
  loop_->run();
  if (registered) loop_->registered().remove(cache_->memory());
  signal_event_fd(ended_.get());
  may_go_.acquire();
  loop_.reset();
}

task<> recorder::write_chunks() {
  if (auto r = file_->start(); !r) failed(file_->path(), r.error());
  if (auto r = co_await append(head(), 0); !r) failed(file_->path(), r.error());
  while (!buffer_->drained()) {
    record_chunk* const c = buffer_->try_take();
    if (c == nullptr) {
      co_await buffer_->arrivals().wait_unless(
          [this]() noexcept { return buffer_->worth_a_look(); });
      continue;
    }
    co_await write_chunk(*c);
    buffer_->give_back(*c);
  }
  if (file_ != nullptr) co_await finish_file(std::move(file_));
  co_await closing_.idle();
  loop::current()->stop();
  co_return result<>{};
}

task<> recorder::append(std::span<const std::byte> blocks, std::uint64_t packets) {
  const std::uint64_t before = file_->bytes();
  const result<> r = co_await file_->append(blocks, packets);
  if (!r) co_return r;
  add_relaxed(appended_packets_, packets);
  add_relaxed(appended_bytes_, file_->bytes() - before);
  co_return r;
}

task<> recorder::write_chunk(const record_chunk& c) {
  if (!error_ && file_->packets() != 0 && (c.period != period_ || !has_room_for(c))) {
    co_await change_file();
  }
  period_ = c.period;
  if (!error_) {
    const result<> r = co_await append(c.bytes(), c.packets);
    if (r) co_return r;
    failed(file_->path(), r.error());
  }
  add_relaxed(lost_to_errors_, c.packets);
  co_return result<>{};
}

bool recorder::has_room_for(const record_chunk& c) const {
  static const std::size_t account_bytes = pcapng::report({}).size();
  return options_.file_bytes_max == 0 ||
         file_->bytes() + c.used + account_bytes <= options_.file_bytes_max;
}

task<> recorder::change_file() {
  // One file is finished beside the one that is written.
  co_await closing_.idle();
  std::unique_ptr<record_file> full = std::exchange(file_, nullptr);
  kept_.emplace_back(full->path(), full->packets());
  if (options_.files_max == 1) co_await finish_file(std::move(full));
  while (options_.files_max != 0 && kept_.size() >= options_.files_max) {
    std::error_code ignored;
    std::filesystem::remove(kept_.front().first, ignored);
    add_relaxed(removed_, kept_.front().second);
    kept_.pop_front();
  }
  const result<> opened = open_file();
  if (!opened) failed(path_of(value_of(files_) + 1), opened.error());
  if (full != nullptr) {
    // Without memory for a task of its own it is waited for.
    task<> finishing = finish_file(std::move(full));
    if (opened && finishing.has_frame()) {
      static_cast<void>(std::move(finishing).spawn(closing_));
    } else {
      co_await std::move(finishing);
    }
  }
  if (!opened) co_return result<>{};
  if (auto r = file_->start(); !r) failed(file_->path(), r.error());
  if (auto r = co_await append(head(), 0); !r) failed(file_->path(), r.error());
  co_return result<>{};
}

// Writes the account and makes the file durable. What it does not have in the end is lost.
task<> recorder::finish_file(std::unique_ptr<record_file> file) {
  const std::uint64_t packets = file->packets();
  const std::uint64_t bytes = file->bytes();
  const std::vector<std::byte> last = account();
  const result<> r = co_await file->finish(last);
  if (!r) failed(file->path(), r.error());
  // relaxed, all: statistics. The differences may be negative, and wrap round.
  appended_bytes_.fetch_add(file->bytes() - bytes, std::memory_order_relaxed);
  appended_packets_.fetch_sub(packets - file->packets(), std::memory_order_relaxed);
  lost_to_errors_.fetch_add(packets - file->packets(), std::memory_order_relaxed);
  co_return result<>{};
}

result<> recorder::open_file() {
  const std::uint64_t number = value_of(files_) + 1;
  auto file = record_file::create(path_of(number), *cache_, options_.device_over);
  if (!file) return fail(file.error());
  file_ = std::move(*file);
  add_relaxed(files_, 1);
  const scoped_lock hold(published_lock_);
  file_name_ = file_->path();
  return {};
}

// NAME.pcapng, or NAME-00001.pcapng where there may be several.
std::string recorder::path_of(std::uint64_t number) const {
  if (options_.file_bytes_max == 0 && options_.file_ns_max == 0) return options_.path;
  std::filesystem::path path(options_.path);
  const std::string name =
      fmt::format("{}-{:05}{}", path.stem().string(), number, path.extension().string());
  return path.replace_filename(name).string();
}

void recorder::failed(const std::string& path, std::error_code e) noexcept {
  if (error_) return;
  error_ = e;
  failed_path_ = path;
  stop();
}

std::vector<std::byte> recorder::head() const {
  std::vector<std::byte> blocks = pcapng::section_header(options_.section);
  const std::vector<std::byte> interface = pcapng::describe({.type = port_.link(),
                                                             .snap_bytes = options_.snap_bytes,
                                                             .name = port_.name(),
                                                             .filter = options_.filter});
  blocks.insert(blocks.end(), interface.begin(), interface.end());
  return blocks;
}

std::vector<std::byte> recorder::account() const {
  const recorder_statistics now = statistics();
  return pcapng::report({.start_ns = started_utc_ns_,
                         .end_ns = utc_ns(),
                         .received = now.port.received + now.port.dropped_interface,
                         .interface_dropped = now.port.dropped_interface,
                         .accepted = now.port.received,
                         .system_dropped = now.port.dropped_full,
                         .delivered = now.written});
}

}  // namespace forebay
