// Which sanitizer this is compiled with: FOREBAY_ASAN and FOREBAY_TSAN are 1 or 0. GCC says so by
// macros of its own, Clang by __has_feature.
#pragma once

#if defined(__SANITIZE_ADDRESS__)
#define FOREBAY_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define FOREBAY_ASAN 1
#endif
#endif
#ifndef FOREBAY_ASAN
#define FOREBAY_ASAN 0
#endif

#if defined(__SANITIZE_THREAD__)
#define FOREBAY_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define FOREBAY_TSAN 1
#endif
#endif
#ifndef FOREBAY_TSAN
#define FOREBAY_TSAN 0
#endif
