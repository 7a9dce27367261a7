# The front door of Forebay: builds, runs, tests and installs it. `make help` lists the targets.

BUILD  := build
JOBS   ?= $(shell nproc)
PREFIX ?= /usr/local
IMAGE  ?=
CACHE  ?=
ARGS   ?=
REPEAT ?= 10
FUZZ_SECONDS ?= 600
FUZZ   ?=

# Looks for missing Debian packages and installs only those. `make DEPS=:` leaves that to you.
DEPS ?= scripts/deps

export IMAGE CACHE ARGS

.DEFAULT_GOAL := release
.PHONY: release debug run test stress fuzz bench install reference format tidy clean help

release: ## build the library and build/release/forebay (what plain `make` does)
	@$(DEPS) build
	@test -f $(BUILD)/release/build.ninja || \
	  cmake --preset release -DFOREBAY_BUILD_TESTS=OFF -DFOREBAY_BUILD_BENCHMARKS=OFF >/dev/null
	@cmake --build --preset release -j $(JOBS) --target program

debug: ## build everything into build/debug
	@$(DEPS) test
	@cmake --preset debug >/dev/null
	@cmake --build --preset debug -j $(JOBS)

run: ## serve IMAGE (default: demo.img, made if missing) with CACHE (such as 512M); more options in ARGS
	@$(DEPS) run
	@$(MAKE) --no-print-directory release DEPS=:
	@exec scripts/run

# Two tests more than there are CPUs: most of the time most of them wait.
test: test-programs ## run every test; ends with CTest's summary
	@ctest --test-dir $(BUILD)/release --output-on-failure --no-tests=error -j $$(($(JOBS) + 2))

.PHONY: test-programs
test-programs:
	@$(DEPS) test
	@cmake --preset release -DFOREBAY_BUILD_TESTS=ON -DFOREBAY_TEST_BUILDS=ON -DFOREBAY_UNITY=TESTS >/dev/null
	@cmake --preset asan -DFOREBAY_UNITY=ON >/dev/null
	@cmake --preset tsan -DFOREBAY_UNITY=ON >/dev/null
	@cmake --build --preset release -j $(JOBS)
	@cmake --build --preset asan -j $(JOBS)
	@cmake --build --preset tsan -j $(JOBS)

stress: test-programs ## run all tests but the house rules REPEAT times (default 10), with FOREBAY_STRESS=1
	@FOREBAY_STRESS=1 ctest --test-dir $(BUILD)/release --output-on-failure --no-tests=error \
	  -j $(JOBS) -LE house --repeat until-fail:$(REPEAT) --schedule-random

fuzz: ## run each fuzzer of fuzz/ for FUZZ_SECONDS (default 600), or one: FUZZ=nbd_handshake
	@$(DEPS) test
	@cmake --preset fuzz >/dev/null
	@cmake --build --preset fuzz -j $(JOBS)
	@scripts/fuzz $(BUILD)/fuzz $(FUZZ_SECONDS) $(FUZZ)

bench: ## measure Forebay beside its peers and print a table (never fails for being slow)
	@$(DEPS) bench
	@cmake --preset release -DFOREBAY_BUILD_TESTS=OFF -DFOREBAY_BUILD_BENCHMARKS=ON >/dev/null
	@cmake --build --preset release -j $(JOBS) --target program bench_programs
	@if test -x bench/run; then bench/run $(ARGS); fi

install: release ## install into PREFIX (default /usr/local); DESTDIR is honoured
	@cmake --install $(BUILD)/release --prefix $(PREFIX)

reference: ## write the reference of the library's headers to build/reference
	@$(DEPS) test
	@scripts/reference

format: ## format every C++ file in place
	@$(DEPS) test
	@scripts/format

tidy: ## run clang-tidy on what changed since it last passed, and compile each public header alone
	@$(DEPS) test
	@cmake --preset asan >/dev/null
	@scripts/tidy --jobs $(JOBS)
	@cmake --preset release >/dev/null
	@scripts/check-headers $(BUILD)/release --jobs $(JOBS)

clean: ## remove the build trees
	@rm -rf $(BUILD)

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile
