#include "sim/explorer/engine.h"

#include <signal.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>

#include "forebay/base/assert.h"
#include "sim/explorer/heap.h"

#if FOREBAY_ASAN
#include <sanitizer/lsan_interface.h>
#endif

namespace forebay::explorer {
namespace {

constexpr std::size_t stack_bytes =
    FOREBAY_ASAN || FOREBAY_TSAN ? std::size_t{256} << 10 : std::size_t{64} << 10;

engine* running_engine = nullptr;

void on_failed_assertion(const char* expression, const char* file, int line) noexcept {
  if (fiber::current().is_main()) return;
  engine::current().fail_with("%s:%d: assertion failed: %s", file, line, expression);
}

// An access through a wild pointer is a failure of the execution. The handler runs on the stack of
// the thread that made it, and that one is left for good.
void on_wild_access(int number) {
  if (fiber::current().is_main()) {
    signal(number, SIG_DFL);
    return;
  }
  engine::current().fail("a wild pointer");
}

// Handlers are in place for this scope.
class catching {
 public:
  catching() noexcept {
    set_assertion_hook(on_failed_assertion);
    struct sigaction action{};
    action.sa_handler = on_wild_access;
    action.sa_flags = SA_NODEFER;
    sigaction(SIGSEGV, &action, &before_);
  }
  ~catching() {
    sigaction(SIGSEGV, &before_, nullptr);
    set_assertion_hook(nullptr);
  }
  catching(const catching&) = delete;
  catching& operator=(const catching&) = delete;

 private:
  struct sigaction before_{};
};

}  // namespace

engine& engine::current() noexcept {
  FOREBAY_ASSERT(running_engine != nullptr);
  return *running_engine;
}

engine::engine() : stores_(new store_record[stores_max]) {
  for (auto& f : fibers_) f = std::make_unique<fiber>(stack_bytes);
}

engine::~engine() = default;

// --- one execution ---

void engine::begin_execution() {
  ++execution_;
  execution_heap::reset();
  choices_.begin();
  concurrent_ = false;
  entering_ = false;
  self_ = 0;
  runnable_ = 0;
  unfinished_ = 0;
  preemptions_left_ = random_ ? unlimited : options_.preemptions;
  steps_ = 0;
  rescues_ = 0;
  spurious_left_ = options_.spurious_failures;
  ended_ = end::complete;
  hash_ = 0;
  common_.clear();
  locations_used_ = 0;
  stores_used_ = 0;
  messages_used_ = 0;
  for (unsigned i = 0; i <= program_->threads; ++i) {
    thread_state& t = threads_[i];
    t.now.clear();
    t.now.at[i] = 1;
    t.to_acquire.clear();
    t.released.clear();
    t.has_to_acquire = false;
    t.has_released = false;
    t.waiting = waits_for::nothing;
    t.timed = false;
    t.timed_out = false;
    t.timeouts_left = options_.timeouts;
    t.timeouts = 0;
    t.spin_count = 0;
    t.events = 0;
    t.made = 0;
    t.chain = mix(i, 17);
    hash_ += last_mix(t.chain);
    fibers_[i]->start(i == 0 ? enter_program : enter_thread, this);
  }
}

engine::end engine::run_once() {
  begin_execution();
  execution_heap::enter();
  fibers_[0]->switch_to();
  execution_heap::leave();
  outcome_->steps_max = std::max(outcome_->steps_max, steps_);
  return ended_;
}

void engine::enter_program(void* self) { static_cast<engine*>(self)->run_program(); }

void engine::run_program() {
  program_->construct(scenario_);
  for (unsigned i = 1; i <= program_->threads; ++i) {
    view& now = threads_[i].now;
    now.join(threads_[0].now);
    runnable_ |= 1u << i;
  }
  tick();
  unfinished_ = runnable_;
  concurrent_ = true;
  give_way();
  // The last thread to end comes back here.
  for (unsigned i = 1; i <= program_->threads; ++i) threads_[0].now.join(threads_[i].now);
  program_->finish(scenario_);
  program_->destroy(scenario_);
  leave(end::complete);
}

void engine::enter_thread(void* self) {
  auto& e = *static_cast<engine*>(self);
  e.entering_ = true;
  e.program_->run(e.scenario_, e.self_ - 1);
  e.entering_ = false;
  e.me().waiting = waits_for::never;
  e.runnable_ &= ~(1u << e.self_);
  e.unfinished_ &= ~(1u << e.self_);
  if (e.unfinished_ == 0) {
    e.concurrent_ = false;
    e.go_to(0);
  }
  e.give_way();
  FOREBAY_ASSERT(!"a thread that has ended goes on");
}

void engine::leave(end how) {
  ended_ = how;
  fiber::main().switch_to();
  std::abort();  // nobody comes back to an execution that has ended
}

void engine::fail(const char* message) { fail_with("%s", message); }

void engine::fail_with(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(message_.data(), message_.size(), format, arguments);
  va_end(arguments);
  leave(end::failed);
}

// --- many ---

// Sets the dice for the next random execution.
void engine::draw_schedule() {
  choices_.clear();
  by_priority_ = lots_.below(2) == 0;
  if (!by_priority_) return;
  const unsigned steps = std::max(outcome_->steps_max, 8u);
  for (auto& change : priority_changes_) change = lots_.below(steps);
  for (thread_state& t : threads_) t.priority = 8 + lots_.below(1 << 16);
}

// Runs the failed execution once more, to tell what happened in it.
void engine::report_failure() {
  outcome& out = *outcome_;
  out.failed = true;
  out.choices = choices_.text();
  if (out.choices.empty()) out.choices = "-";
  out.message = std::string(program_->name) + ": " + message_.data();
  if (options_.explain) {
    replay(out.choices);
    out.message += "\nchoices: " + out.choices + "\n" + trace_.text();
  }
}

engine::end engine::replay(const std::string& text) {
  random_ = false;
  telling_states_apart_ = false;
  choices_.replay(text == "-" ? "" : text);
  trace_.start();
  const end how = run_once();
  trace_.stop();
  return how;
}

void engine::explore_depth_first() {
  telling_states_apart_ = true;
  seen_.clear();
  choices_.clear();
  for (;;) {
    ++outcome_->executions;
    const end how = run_once();
    if (how == end::failed) return report_failure();
    outcome_->complete += how == end::complete ? 1 : 0;
    outcome_->states = seen_.count();
    if (!choices_.advance()) {
      outcome_->exhausted = true;
      return;
    }
    if (outcome_->executions >= options_.executions_max) return;
  }
}

void engine::explore_at_random() {
  telling_states_apart_ = false;
  lots_ = generator(options_.seed);
  // Each execution is told by its choices, but bounds of depth-first exploration do not apply.
  options_.preemptions = unlimited;
  for (std::uint64_t i = 0; i < options_.random_executions; ++i) {
    random_ = true;
    draw_schedule();
    ++outcome_->random;
    if (run_once() == end::failed) return report_failure();
  }
}

outcome engine::explore(const program& p, const options& opts, site_table* sites) {
  FOREBAY_ASSERT(running_engine == nullptr && p.threads >= 1 && p.threads < threads_max);
  FOREBAY_ASSERT(p.bytes <= scenario_bytes && p.alignment <= scenario_alignment);
  running_engine = this;
  const catching faults;
#if FOREBAY_ASAN
  __lsan_disable();  // an execution that is given up leaves its objects where they are
#endif
  outcome out;
  program_ = &p;
  options_ = opts;
  sites_ = sites;
  outcome_ = &out;
  random_ = false;
  if (opts.replay != nullptr) {
    out.executions = 1;
    if (replay(opts.replay) == end::failed) {
      report_failure();
    } else {
      out.message = trace_.text();
    }
  } else {
    if (opts.executions_max != 0) explore_depth_first();
    if (!out.failed && opts.random_executions != 0) explore_at_random();
  }
#if FOREBAY_ASAN
  __lsan_enable();
#endif
  running_engine = nullptr;
  return out;
}

}  // namespace forebay::explorer
