# `make demo` and `make test` are meant to be the only command after cloning. Everything else is a part of them.
#
#   make demo            three members on this machine, a live table; Ctrl-C ends it
#   make demo STORY=1    the scripted story: crash, lost member, rejoin, switchover, SIGTERM
#   make test            unit tests, house rules, clusters with real Postgres (lease times scaled by five)
#   make test-full       the same, every test in real pods, members of Patroni 4.1 beside ours, and the oldest API server
#                        that is tested
#   make sim SEEDS=1000  more seeds of the simulation (FROM=1: the first)
#   make bench           failover times, memory and API requests beside their targets (release build)
#   make bench KUBE=1    the same in real pods
#   make image           target/image/patroni.tar: the Dockerfile's image, made without a container engine
#   make lint            format and clippy
#   make kube-up         a real Kubernetes on this machine (NODES=1), see tests/kube/README.md; as root
#   make kube-shell      a shell that talks to it
#   make kube-down       ends it

CARGO ?= cargo
WORDS ?=
DEMO_ARGS ?=
NODES ?= 1
SEEDS ?= 1000
FROM ?= 1
# Of the simulation in `make test`: so many seeds, and the first of them. `.ci/run` takes others every day.
SIM_SEEDS ?= 5000
SIM_FROM ?= 1
SIM := $(CARGO) test --profile sim --features test-mutants --test sim --
UNSCALED := $(CURDIR)/target/unscaled
VENV := $(CURDIR)/target/patroni-venv
PROGRAMS := patroni postgres-keeper patronictl

.PHONY: demo test test-full sim bench lint prepare unscaled image kube-up kube-down kube-shell

demo:
	@echo "building the release binaries (minutes the first time)"
	$(CARGO) build --release --bins
	@target/release/patroni-demo $(if $(STORY),--story) $(DEMO_ARGS)

test: prepare unscaled image
	$(CARGO) test --lib --test scenarios
	SIM_SEEDS=$(SIM_SEEDS) SIM_FROM=$(SIM_FROM) $(SIM)
	PATRONI_UNSCALED_BIN_DIR=$(UNSCALED) $(CARGO) test --features test-time-scale --test '*' --no-fail-fast -- $(WORDS)
	$(if $(WORDS),,tests/kube/with_api.sh sh -c '$(CARGO) test --features test-time-scale --test kube_api -- a_real_server && \
		$(CARGO) test --features test-time-scale --test cluster')

# Whole clusters of the shipping machines under drawn faults: `make sim SEEDS=1000 FROM=1`.
sim:
	SIM_SEEDS=$(SEEDS) SIM_FROM=$(FROM) $(SIM) --nocapture

# Everything there is: all tests in real pods, a fleet of Patroni and ours, more seeds of the simulation. About an hour more on two cores.
test-full:
	PATRONI_VENV=$$(tests/support/patroni.sh $(VENV)) PATRONI_TIER=full SIM_SEEDS=$(SIM_SEEDS)0 $(MAKE) test
	tests/kube/with_api.sh --oldest $(CARGO) test --features test-time-scale --test kube_api -- a_real_server

# The same programs without the time scale, for the tests that run at true speed. Cargo keeps one copy of a program per
# profile, so these are put aside before the scaled ones are built.
unscaled:
	$(CARGO) build --bins
	@mkdir -p $(UNSCALED)
	@for p in $(PROGRAMS); do install -m 755 target/debug/$$p $(UNSCALED)/$$p; done

# The image of the Dockerfile as an OCI archive, target/image/patroni.tar, without a container engine.
image:
	@CARGO="$(CARGO)" sh deploy/image.sh

bench: prepare $(if $(KUBE),image)
	$(CARGO) bench --bench $(if $(KUBE),pods,failover) -- $(WORDS)

lint:
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets -- -D warnings

prepare:
	@sh tests/support/prepare.sh

# 77 is "cannot run here", said in one line: no error of make's.
kube-up:
	@tests/kube/cluster.sh up --nodes $(NODES) || [ $$? = 77 ]

kube-down:
	@tests/kube/cluster.sh down

kube-shell:
	@tests/kube/cluster.sh shell
