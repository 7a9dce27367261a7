// Holds the test sources that say "// One thread: ..." in a line of their own to their word: a test
// in one of them that starts a thread fails. The thread sanitizer's tree leaves these sources out
// (cmake/ForebayTests.cmake).
//
// Linked into every test program of a tree without a sanitizer. Its pthread_create() is found
// before the C library's, by the C++ library as well.

#include <dlfcn.h>
#include <gtest/gtest.h>
#include <pthread.h>

#include <atomic>
#include <fstream>
#include <string>

namespace {

std::atomic<int> threads_started = 0;

// False as well where the test runs away from its source.
bool says_one_thread(const char* file) {
  std::ifstream source(file);
  for (std::string line; std::getline(source, line);) {
    if (line.starts_with("// One thread: ")) return true;
  }
  return false;
}

class word_keeper : public testing::EmptyTestEventListener {
  void OnTestStart(const testing::TestInfo&) override { threads_started = 0; }

  void OnTestEnd(const testing::TestInfo& test) override {
    if (threads_started != 0 && says_one_thread(test.file())) {
      ADD_FAILURE() << test.file() << " says 'One thread:', and this test started "
                    << threads_started;
    }
  }
};

// GoogleTest owns its listeners.
const bool keeps_them_to_it = [] {
  testing::UnitTest::GetInstance()->listeners().Append(new word_keeper);
  return true;
}();

}  // namespace

// The C library's declaration, parameter names aside.
extern "C" int pthread_create(pthread_t* thread, const pthread_attr_t* attributes,
                              void* (*body)(void*), void* argument) noexcept {
  using function = decltype(&pthread_create);
  static const auto next = reinterpret_cast<function>(dlsym(RTLD_NEXT, "pthread_create"));
  ++threads_started;
  return next(thread, attributes, body, argument);
}
