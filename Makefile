# Everything is built with the release profile: one build then serves the program, the tests and clippy, and the tests
# run at the speed that users see.
CARGO ?= cargo
PROGRAM := $(or $(CARGO_TARGET_DIR),target)/release/sandbox-mcp

.PHONY: demo test test-filter test-npm-tools lint bench soak bundle setup setup-tests program image
.DEFAULT_GOAL := demo

# A VM runs a line of Python. An answer that is an error fails the demo, and is shown.
demo: image
	@answer=$$(printf '%s\n' '{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"execute_code","arguments":{"language":"python","code":"print(6*7)"}}}' \
	    | $(PROGRAM)) || exit; \
	if command -v jq >/dev/null; then printf '%s\n' "$$answer" | jq .; else printf '%s\n' "$$answer"; fi; \
	case $$answer in *'"isError":false'*) ;; *) echo 'The demo failed: see the answer above.' >&2; exit 1 ;; esac

# The tests start VMs, so the image comes first; it is built by the program that the tests are about. The clients that they
# use are installed here, where it is seen how long that takes; a registry that cannot be reached (75) is the tests' to tell.
test: setup-tests
	@for set in mcp-2.3.0 mcp-1.30.0 adapters node; do \
	    sh tests/clients/install.sh $$set >/dev/null || [ $$? = 75 ] || exit 1; \
	done
	$(CARGO) build --workspace --all-targets --release --locked
	$(PROGRAM) image build
	@rm -f $(dir $(PROGRAM))skipped
	$(CARGO) test --workspace --release --locked
	@[ ! -e $(dir $(PROGRAM))skipped ] || { echo "SKIPPED, so not tested:"; sort $(dir $(PROGRAM))skipped | uniq -c; }

# Every system call of QEMUs that do all that they are there for, traced: none may be refused but what they only try. Minutes.
test-filter: setup-tests image
	$(CARGO) test --workspace --release --locked --test product -- --ignored nothing_is_refused_to_a_qemu_that_works

# TypeScript, bundlers and test runners of npm, installed and run, each once. Minutes.
test-npm-tools: setup-tests image
	$(CARGO) test --workspace --release --locked --test product -- --ignored tools_of_npm

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --release --locked -- -D warnings

# Builds what is missing of the image: minutes the first time, no time later.
image: program
	$(PROGRAM) image build

program: setup
	$(CARGO) build --release --locked

# How long a user waits, and what a VM costs: never fails on a time. AGAINST=/path/to/another/sandbox-mcp compares with that.
bench: image
	$(CARGO) bench --workspace --locked --bench performance

# Ten thousand runs through one server, whose holdings must not grow; minutes. RUNS=3000 runs fewer.
soak: image
	$(CARGO) bench --workspace --locked --bench soak

# What desktop clients and the MCP registry install from, in target/bundle. URL is where the bundle will be found.
bundle: program
	@mkdir -p target/bundle
	@installed=$$(sh tests/clients/install.sh node) && cd "$$installed/node_modules/.bin" && \
	    ./node $(CURDIR)/packaging/pack.mjs mcpb $(abspath $(PROGRAM)) $(CURDIR)/target/bundle "$(URL)"

# Installs the tools that are missing on this host.
setup:
	@sh images/install-tools.sh

setup-tests:
	@sh images/install-tools.sh tests
