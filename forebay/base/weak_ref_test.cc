#include "forebay/base/weak_ref.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <array>
#include <memory>
#include <thread>
#include <vector>

#include "forebay/base/test_counting_atomics.h"

namespace forebay {
namespace {

// Storage for blocks that knows what is out; hands each block's memory out once.
struct block_store {
  int out = 0;
  std::size_t bytes_back = 0;
  std::size_t alignment_back = 0;

  void* take(std::size_t bytes, std::size_t alignment) {
    ++out;
    return ::operator new(bytes, std::align_val_t{alignment});
  }
};

// A deleter with state, as one that leads to a slab.
struct store_deleter {
  block_store* store;
  void operator()(void* memory, std::size_t bytes, std::size_t alignment) const noexcept {
    --store->out;
    store->bytes_back = bytes;
    store->alignment_back = alignment;
    ::operator delete(memory, std::align_val_t{alignment});
  }
};

struct thing {
  explicit thing(int& alive_count, int number_ = 0) noexcept
      : alive(&alive_count), number(number_) {
    ++*alive;
  }
  ~thing() { --*alive; }
  int* alive;
  int number;
};

template <typename T>
auto make_in(block_store& store, auto&&... args) {
  using block = counted_block<T, store_deleter>;
  return make_ref_in<T>(store.take(sizeof(block), alignof(block)), store_deleter{&store},
                        std::forward<decltype(args)>(args)...);
}

TEST(WeakRef, TheObjectLivesUntilTheLastStrongReferenceGoes) {
  int alive = 0;
  ref_ptr<thing> a = make_ref<thing>(alive, 7);
  ASSERT_TRUE(a);
  EXPECT_EQ(a->number, 7);
  ref_ptr<thing> b = a.share();
  EXPECT_EQ(a.get(), b.get());
  a.reset();
  EXPECT_FALSE(a);
  EXPECT_EQ(a.get(), nullptr);
  EXPECT_EQ(alive, 1);
  EXPECT_EQ((*b).number, 7);
  b.reset();
  EXPECT_EQ(alive, 0);
}

TEST(WeakRef, GivesAStrongReferenceWhileTheObjectLivesAndNoneAfterwards) {
  int alive = 0;
  ref_ptr<thing> strong = make_ref<thing>(alive, 7);
  const weak_ref<thing> weak = strong.weak();
  EXPECT_FALSE(weak.expired());
  {
    const ref_ptr<thing> again = weak.lock();
    ASSERT_TRUE(again);
    EXPECT_EQ(again.get(), strong.get());
    strong.reset();
    EXPECT_EQ(alive, 1) << "the locked one holds it";
  }
  EXPECT_EQ(alive, 0);
  EXPECT_TRUE(weak.expired());
  EXPECT_TRUE(weak) << "there was an object";
  EXPECT_FALSE(weak.lock());
}

TEST(WeakRef, TheMemoryStaysUntilTheLastWeakReferenceGoes) {
  block_store store;
  int alive = 0;
  auto strong = make_in<thing>(store, alive);
  auto weak = strong.weak();
  auto weaker = weak.share();
  strong.reset();
  EXPECT_EQ(alive, 0);
  EXPECT_EQ(store.out, 1);
  weak.reset();
  EXPECT_EQ(store.out, 1);
  EXPECT_FALSE(weaker.lock());
  weaker.reset();
  EXPECT_EQ(store.out, 0);
}

TEST(WeakRef, TheDeleterGetsWhatTheBlockTook) {
  struct alignas(128) wide {
    std::byte bytes[200];
  };
  block_store store;
  auto strong = make_in<wide>(store);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(strong.get()) % 128, 0u);
  strong.reset();
  EXPECT_EQ(store.out, 0);
  EXPECT_EQ(store.bytes_back, sizeof(counted_block<wide, store_deleter>));
  EXPECT_EQ(store.alignment_back, 128u);
}

TEST(WeakRef, TheHeapKeepsAnAlignmentBeyondItsOwn) {
  struct alignas(256) wide {
    std::byte bytes[256];
  };
  std::vector<ref_ptr<wide>> many;
  for (int i = 0; i < 10; ++i) {
    many.push_back(make_ref<wide>());
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(many.back().get()) % 256, 0u);
  }
}

TEST(WeakRef, ADeleterWithoutStateCostsNothing) {
  EXPECT_EQ(sizeof(counted_block<std::uint64_t>), 16u);
  EXPECT_EQ(sizeof(ref_ptr<int>), sizeof(void*));
  EXPECT_EQ(sizeof(weak_ref<int>), sizeof(void*));
}

TEST(WeakRef, WithoutMemoryThereIsNoneAndNothingIsDeleted) {
  block_store store;
  int alive = 0;
  const auto none = make_ref_in<thing>(nullptr, store_deleter{&store}, alive);
  EXPECT_FALSE(none);
  EXPECT_EQ(alive, 0);
  EXPECT_EQ(store.out, 0);
}

TEST(WeakRef, EmptyOnesGiveEmptyOnes) {
  ref_ptr<thing> strong;
  weak_ref<thing> weak;
  EXPECT_FALSE(strong.share());
  EXPECT_FALSE(strong.weak());
  EXPECT_FALSE(weak.share());
  EXPECT_FALSE(weak.lock());
  EXPECT_TRUE(weak.expired());
  strong.reset();
  weak.reset();
}

TEST(WeakRef, MovesTakeTheReferenceAlong) {
  int alive = 0;
  ref_ptr<thing> a = make_ref<thing>(alive, 1);
  ref_ptr<thing> b = make_ref<thing>(alive, 2);
  weak_ref<thing> wa = a.weak();
  weak_ref<thing> wb = b.weak();
  a = std::move(b);
  EXPECT_EQ(a->number, 2);
  EXPECT_EQ(alive, 1);
  EXPECT_TRUE(wa.expired());
  wa = std::move(wb);
  EXPECT_FALSE(wa.expired());
  ref_ptr<thing>& same = a;
  a = std::move(same);
  ASSERT_TRUE(a) << "moved to itself";
  EXPECT_EQ(alive, 1);
  weak_ref<thing>& same_weak = wa;
  wa = std::move(same_weak);
  EXPECT_TRUE(wa.lock());
}

// A parent that owns its children, which know their parent: strong down, weak up.
struct node {
  explicit node(int& alive_count) noexcept : alive(&alive_count) { ++*alive; }
  ~node() { --*alive; }
  void add_child() {
    children.push_back(make_ref<node>(*alive));
    children.back()->parent = weak_ref<node>::of(*this);
  }
  int* alive;
  weak_ref<node> parent;
  std::vector<ref_ptr<node>> children;
  ref_ptr<node> strong_parent;
};

TEST(WeakRef, ACycleThroughAWeakReferenceIsFreed) {
  int alive = 0;
  ref_ptr<node> root = make_ref<node>(alive);
  root->add_child();
  root->add_child();
  root->children[0]->add_child();
  EXPECT_EQ(alive, 4);
  EXPECT_EQ(root->children[0]->children[0]->parent.lock().get(), root->children[0].get());
  ref_ptr<node> kept = root->children[0].share();
  root.reset();
  EXPECT_EQ(alive, 2) << "the kept child and its own child";
  EXPECT_TRUE(kept->parent.expired());
  EXPECT_FALSE(kept->children[0]->parent.expired());
  kept.reset();
  EXPECT_EQ(alive, 0);
}

TEST(WeakRef, ACycleOfStrongReferencesIsNot) {
  int alive = 0;
  ref_ptr<node> root = make_ref<node>(alive);
  root->add_child();
  node* const child = root->children[0].get();
  child->strong_parent = root.share();
  const weak_ref<node> watch = root.weak();
  root.reset();
  EXPECT_EQ(alive, 2) << "this is what weak references are for";
  watch.lock()->children[0]->strong_parent.reset();
  EXPECT_EQ(alive, 0);
}

struct self_aware {
  explicit self_aware(weak_ref<self_aware>& out) noexcept : outside(&out) {
    *outside = weak_ref<self_aware>::of(*this);
    seen_in_constructor = static_cast<bool>(outside->lock());
  }
  ~self_aware() {
    *outside = weak_ref<self_aware>::of(*this);
    if (outside->lock()) std::abort();
  }
  weak_ref<self_aware>* outside;
  bool seen_in_constructor = false;
};

TEST(WeakRef, AnObjectMayNameItselfInItsConstructorAndDestructor) {
  weak_ref<self_aware> outside;
  ref_ptr<self_aware> strong = make_ref<self_aware>(outside);
  EXPECT_TRUE(strong->seen_in_constructor);
  EXPECT_EQ(outside.lock().get(), strong.get());
  outside.reset();
  strong.reset();  // alone, and yet the destructor makes a weak reference
  EXPECT_TRUE(outside);
  EXPECT_TRUE(outside.expired());
}

// --- the pair of counts --------------------------------------------------------------------------

using pair = basic_ref_pair<>;

template <typename F>
std::uint64_t misuses_of(refcount_misuse kind, F use) {
  const std::uint64_t before = refcount_misuses(kind);
  const std::uint64_t all_before = refcount_misuses();
  use();
  EXPECT_EQ(refcount_misuses() - all_before, refcount_misuses(kind) - before) << "of other kinds";
  return refcount_misuses(kind) - before;
}

void expect_saturated(pair& p) {
  EXPECT_EQ(p.strong(), pair::saturated);
  EXPECT_EQ(p.weak(), pair::saturated);
  for (int i = 0; i < 100; ++i) {
    EXPECT_FALSE(p.put_strong());
    EXPECT_FALSE(p.put_weak());
    EXPECT_TRUE(p.get_strong_unless_zero());
  }
  p.get_strong();
  p.get_weak();
  EXPECT_EQ(p.strong(), pair::saturated);
  EXPECT_EQ(p.weak(), pair::saturated);
}

TEST(RefPair, EveryMisuseSaturatesBothCountsForEver) {
  const struct {
    std::uint32_t strong;
    std::uint32_t weak;
    refcount_misuse kind;
    void (*use)(pair&);
  } cases[] = {
      {0, 2, refcount_misuse::add_use_after_free, [](pair& p) { p.get_strong(); }},
      {0, 0, refcount_misuse::add_use_after_free, [](pair& p) { p.get_weak(); }},
      {pair::max, 2, refcount_misuse::add_overflow, [](pair& p) { p.get_strong(); }},
      {2, pair::max, refcount_misuse::add_overflow, [](pair& p) { p.get_weak(); }},
      {pair::max, 2, refcount_misuse::add_not_zero_overflow,
       [](pair& p) { EXPECT_TRUE(p.get_strong_unless_zero()); }},
      {0, 2, refcount_misuse::sub_use_after_free, [](pair& p) { EXPECT_FALSE(p.put_strong()); }},
      {0, 1, refcount_misuse::sub_use_after_free, [](pair& p) { EXPECT_FALSE(p.put_strong()); }},
      {0, 0, refcount_misuse::sub_use_after_free, [](pair& p) { EXPECT_FALSE(p.put_weak()); }},
      {1, 0, refcount_misuse::sub_use_after_free, [](pair& p) { EXPECT_FALSE(p.put_weak()); }},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(testing::Message() << c.strong << ' ' << c.weak << ' ' << to_string(c.kind));
    pair p(c.strong, c.weak);
    EXPECT_EQ(misuses_of(c.kind, [&] { c.use(p); }), 1u);
    EXPECT_EQ(misuses_of(c.kind, [&] { expect_saturated(p); }), 0u) << "counted once";
  }
}

TEST(RefPair, TheMaximaAreRealCounts) {
  pair p(pair::max - 1, pair::max - 1);
  EXPECT_EQ(misuses_of(refcount_misuse::add_overflow,
                       [&] {
                         p.get_strong();
                         p.get_weak();
                         EXPECT_FALSE(p.put_strong());
                         EXPECT_FALSE(p.put_weak());
                       }),
            0u);
  EXPECT_EQ(p.strong(), pair::max - 1);
  EXPECT_EQ(p.weak(), pair::max - 1);
}

TEST(RefPairCost, OneLockedInstructionAndNoneForWhoIsAlone) {
  basic_ref_pair<counting_atomics> p;
  EXPECT_EQ(locked_by([&] { p.get_strong(); }), 1u);
  EXPECT_EQ(locked_by([&] { p.get_weak(); }), 1u);
  EXPECT_EQ(locked_by([&] { EXPECT_TRUE(p.get_strong_unless_zero()); }), 1u);
  EXPECT_EQ(locked_by([&] { EXPECT_FALSE(p.put_strong()); }), 1u);
  EXPECT_EQ(locked_by([&] { EXPECT_FALSE(p.put_strong()); }), 1u);
  EXPECT_EQ(locked_by([&] { EXPECT_FALSE(p.put_weak()); }), 1u);
  EXPECT_EQ(locked_by([&] { EXPECT_TRUE(p.put_strong()); }), 0u);
  EXPECT_EQ(locked_by([&] { EXPECT_TRUE(p.put_weak()); }), 0u);
  EXPECT_EQ(p.weak(), 0u);
}

TEST(RefPairCost, WithAWeakReferenceOutTheLastStrongPutIsLocked) {
  basic_ref_pair<counting_atomics> p;
  p.get_weak();
  EXPECT_EQ(locked_by([&] { EXPECT_TRUE(p.put_strong()); }), 1u);
  EXPECT_EQ(locked_by([&] { EXPECT_FALSE(p.put_weak()); }), 1u);
  EXPECT_EQ(locked_by([&] { EXPECT_TRUE(p.put_weak()); }), 0u);
}

// Any sequence of operations does what shared_ptr and weak_ptr do.
RC_GTEST_PROP(WeakRef, DoesWhatSharedPtrDoes, ()) {
  constexpr int slots = 4;
  int alive = 0;
  int model_alive = 0;
  std::array<ref_ptr<thing>, slots> strong;
  std::array<weak_ref<thing>, slots> weak;
  std::array<std::shared_ptr<thing>, slots> model_strong;
  std::array<std::weak_ptr<thing>, slots> model_weak;
  int made = 0;
  const auto steps = *rc::gen::container<std::vector<std::array<int, 3>>>(
      rc::gen::container<std::array<int, 3>>(rc::gen::inRange(0, 24)));
  for (const auto& [what, a, b] : steps) {
    const auto to = static_cast<std::size_t>(a % slots);
    const auto from = static_cast<std::size_t>(b % slots);
    switch (what % 7) {
      case 0:
        ++made;
        strong[to] = make_ref<thing>(alive, made);
        model_strong[to] = std::make_shared<thing>(model_alive, made);
        break;
      case 1:
        strong[to] = strong[from].share();
        model_strong[to] = model_strong[from];
        break;
      case 2:
        weak[to] = strong[from].weak();
        model_weak[to] = model_strong[from];
        break;
      case 3:
        weak[to] = weak[from].share();
        model_weak[to] = model_weak[from];
        break;
      case 4:
        strong[to] = weak[from].lock();
        model_strong[to] = model_weak[from].lock();
        break;
      case 5:
        strong[to].reset();
        model_strong[to].reset();
        break;
      default:
        weak[to].reset();
        model_weak[to].reset();
        break;
    }
    RC_ASSERT(alive == model_alive);
    for (std::size_t i = 0; i < slots; ++i) {
      RC_ASSERT(static_cast<bool>(strong[i]) == static_cast<bool>(model_strong[i]));
      if (strong[i]) RC_ASSERT(strong[i]->number == model_strong[i]->number);
      RC_ASSERT(weak[i].expired() == model_weak[i].expired());
    }
  }
}

// --- threads -------------------------------------------------------------------------------------

// What the destructor leaves behind, apart from the object.
struct life {
  std::atomic<int> destroyed{0};
  std::atomic<int> freed{0};
  std::atomic<int> written{0};  // by how many holders, as the destructor saw it
};

struct mortal {
  explicit mortal(life& l) noexcept : of(&l) {}
  ~mortal() {
    data = -1;
    of->written.store(written[0] + written[1]);
    of->destroyed.fetch_add(1);
  }
  life* of;
  // Plain on purpose: a missing order shows as a race.
  int data = 42;
  int written[2] = {};
};

struct mortal_deleter {
  life* of;
  void operator()(void* memory, std::size_t, std::size_t alignment) const noexcept {
    of->freed.fetch_add(1);
    ::operator delete(memory, std::align_val_t{alignment});
  }
};

auto make_mortal(life& l) {
  using block = counted_block<mortal, mortal_deleter>;
  return make_ref_in<mortal>(
      ::operator new(sizeof(block), std::align_val_t{alignof(block)}, std::nothrow),
      mortal_deleter{&l}, l);
}

constexpr std::size_t lives_count = 2'000;

// One thread gives the last strong reference up while another asks its weak one: either that gets
// the living object, or none; destructor and free run once each, whoever is last.
TEST(WeakRefStress, LockRacesWithTheLastStrongReference) {
  std::vector<life> lives(lives_count);
  std::vector<decltype(make_mortal(lives[0]))> strong;
  std::vector<decltype(strong[0].weak())> weak;
  for (life& l : lives) {
    strong.push_back(make_mortal(l));
    weak.push_back(strong.back().weak());
  }
  std::atomic<int> dead_seen{0};
  std::atomic<std::size_t> started{0};
  const auto together = [&started] {
    started.fetch_add(1);
    while (started.load() < 2) std::this_thread::yield();
  };
  std::thread dropper([&] {
    together();
    for (auto& s : strong) s.reset();
  });
  std::thread asker([&] {
    together();
    for (auto& w : weak) {
      if (const auto s = w.lock(); s && s->data != 42) ++dead_seen;
      w.reset();
    }
  });
  dropper.join();
  asker.join();
  EXPECT_EQ(dead_seen.load(), 0);
  for (const life& l : lives) {
    ASSERT_EQ(l.destroyed.load(), 1);
    ASSERT_EQ(l.freed.load(), 1);
  }
}

// Two holders of each kind go at the same time, one of them making more on the way.
TEST(WeakRefStress, HoldersOfBothKindsGoAtTheSameTime) {
  std::vector<life> lives(lives_count);
  struct holder {
    decltype(make_mortal(lives[0])) strong;
    decltype(strong.weak()) weak;
  };
  std::array<std::vector<holder>, 2> hands;
  for (life& l : lives) {
    auto first = make_mortal(l);
    auto weak = first.weak();
    auto second = first.share();
    auto second_weak = weak.share();
    hands[0].push_back({std::move(first), std::move(weak)});
    hands[1].push_back({std::move(second), std::move(second_weak)});
  }
  std::atomic<int> dead_seen{0};
  std::array<std::thread, 2> threads;
  for (std::size_t t = 0; t < 2; ++t) {
    threads[t] = std::thread([&, t] {
      for (holder& h : hands[t]) {
        const auto more = h.strong.weak();
        h.strong->written[t] = 1;
        h.strong.reset();
        if (const auto again = more.lock(); again && again->data != 42) ++dead_seen;
        h.weak.reset();
      }
    });
  }
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(dead_seen.load(), 0);
  for (const life& l : lives) {
    ASSERT_EQ(l.written.load(), 2);
    ASSERT_EQ(l.destroyed.load(), 1);
    ASSERT_EQ(l.freed.load(), 1);
  }
}

// The other thread has put its references, which this one learns from the (relaxed) counts alone:
// all order between them comes from the puts. Once with a weak reference left over, once alone.
TEST(WeakRefStress, TheLastHolderIsOrderedAfterTheOthers) {
  for (const bool keep_weak : {true, false}) {
    life l;
    auto strong = make_mortal(l);
    auto weak = keep_weak ? strong.weak() : decltype(strong.weak())();
    auto& counts = counted_block<mortal, mortal_deleter>::of(*strong).counts();
    const std::uint32_t weak_left = keep_weak ? 2 : 1;
    std::thread other([its = strong.share(), its_weak = strong.weak()]() mutable {
      its->written[0] = 1;
      its.reset();
      its_weak.reset();
    });
    while (counts.strong() != 1 || counts.weak() != weak_left) std::this_thread::yield();
    strong->written[1] = 1;
    strong.reset();
    EXPECT_EQ(l.written.load(), 2);
    weak.reset();
    EXPECT_EQ(l.freed.load(), 1);
    other.join();
  }
}

// Strong references are made from weak ones and by share(), and dropped, on both sides while the
// object is written by nobody; the object dies with the last.
TEST(WeakRefStress, ManyReferencesComeAndGo) {
  life l;
  auto root = make_mortal(l);
  std::array<std::thread, 2> threads;
  std::atomic<int> missing{0};
  for (std::thread& t : threads) {
    t = std::thread([&missing, strong = root.share(), weak = root.weak()]() mutable {
      for (int i = 0; i < 5'000; ++i) {
        const auto one = strong.share();
        const auto two = weak.lock();
        const auto three = two.weak();
        if (!two || three.expired()) ++missing;
      }
    });
  }
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(missing.load(), 0);
  EXPECT_EQ(l.destroyed.load(), 0);
  root.reset();
  // The thread objects have destroyed their functions, and the references with them.
  EXPECT_EQ(l.destroyed.load(), 1);
  EXPECT_EQ(l.freed.load(), 1);
}

}  // namespace
}  // namespace forebay
