// What a connection needs of its server, for tests: one export of memory, and a loop for one
// connection at a time.
#pragma once

#include <memory>
#include <string>
#include <utility>

#include "forebay/block/memory_device.h"
#include "forebay/os/fd_passing.h"
#include "forebay/serve/connection.h"

namespace forebay {

class test_host : public connection_host {
 public:
  test_host(std::unique_ptr<request_memory> memory, std::uint64_t image_bytes)
      : memory_(std::move(memory)) {
    auto cache = page_cache::create({.bytes = page_cache::min_bytes, .huge_pages = false});
    FOREBAY_ASSERT(cache.has_value());
    cache_ = std::move(*cache);
    export_options opts;
    opts.name = "disk";
    export_ = std::make_unique<nbd_export>(std::make_unique<memory_device>(image_bytes), *cache_,
                                           std::move(opts));
  }

  static std::unique_ptr<request_memory> plain_memory() {
    const request_memory::options opts;
    auto parts = request_memory::make_parts(opts, memory_source::system());
    FOREBAY_ASSERT(parts.has_value());
    return std::make_unique<request_memory>(std::move(*parts), opts);
  }

  // Two ends of a connection.
  static socket_pair sockets() { return *make_socket_pair(); }

  // Serves a client to its end, on a loop of this thread.
  void serve(loop& on, unique_fd socket) {
    start s;
    s.self = this;
    s.on = &on;
    s.socket = std::move(socket);
    s.completion::run = [](completion& c) noexcept {
      auto& me = static_cast<start&>(c);
      FOREBAY_ASSERT(serve_one(&me).spawn(me.group));
    };
    on.post(s);
    on.run();
  }

  bool client_arrived() noexcept override { return true; }
  void client_left() noexcept override {}
  nbd_export* find_export(std::string_view name) noexcept override {
    return name.empty() || name == "disk" ? export_.get() : nullptr;
  }
  nbd_export* export_at(std::size_t index) noexcept override {
    return index == 0 ? export_.get() : nullptr;
  }
  std::string statistics_text() override { return std::string(100'000, 's'); }
  task<std::string> tune(std::string_view) override { co_return std::string("not here"); }
  request_memory& memory() noexcept override { return *memory_; }
  std::size_t pin_allowance(const nbd_export&) const noexcept override { return 64; }
  std::size_t request_allowance() const noexcept override {
    return memory_->limits().request_bytes_max;
  }

 private:
  struct start : completion {
    test_host* self = nullptr;
    loop* on = nullptr;
    unique_fd socket;
    task_group group;
  };

  static task<> serve_one(start* s) {
    s->on->set_frames(s->self->memory_.get());
    {
      connection c(*s->self, *s->on, std::move(s->socket));
      if (c.usable()) co_await c.run();
    }
    s->on->set_frames(nullptr);
    s->on->stop();
    co_return result<>{};
  }

  std::unique_ptr<request_memory> memory_;
  std::unique_ptr<page_cache> cache_;
  std::unique_ptr<nbd_export> export_;
};

}  // namespace forebay
