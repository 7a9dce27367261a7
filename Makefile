# The front door. `make help` lists what there is.

BUILD   := build
JOBS    ?= $(shell nproc)
PREFIX  ?= /usr/local
# Installed packages are checked first (a quick look when nothing is missing). DEPS=: leaves that out.
DEPS    ?= scripts/deps

.PHONY: release
release: ## build build/release/forebay (the default)
	@$(DEPS) build
	@test -f $(BUILD)/release/build.ninja || cmake --preset release -DFOREBAY_BUILD_TESTS=OFF
	@cmake --build --preset release -j $(JOBS) --target program
