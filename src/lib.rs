//! Patroni for Kubernetes: the code map.
//!
//! A sidecar keeps the Postgres beside it in one of two roles, primary or standby, so that a cluster has one writer and
//! loses nothing it promised to keep. This is the way of one event, and the order to read the folders in:
//!
//! ```text
//!  Endpoints/ConfigMaps/Pods            postgres container            peers, people
//!         │ watch                           │ socket, SQL                │ REST
//!         ▼                                 ▼                            ▼
//!    dcs::watch → dcs::desk            postgres::{keeper_client,sql}     driver::peers, api → door
//!         └──────────► driver: View · Keeper · Reply(id) · Asked · Settings · Signal · Due ◄──┘
//!                          │  Input, now
//!                          ▼
//!            member: absorb ► decide ► check ► emit          (pure: no IO, no clock, no async, no log)
//!                          │  effects with ids and deadlines, log lines, wake_at
//!                          ▼
//!                       driver ──► dcs (lease + addresses, status)      ──► Kubernetes
//!                          │  └──► postgres (start, stop, promote, …)   ──► keeper ──► postmaster
//!                          └────── answers, each with the id of its effect: the next input
//! ```
//! What decides is a value that takes inputs and returns effects. There are three such machines, and the production program
//! and the simulation drive the same ones (the scenarios drive the decision in their middle): the member ([`member::Member`]), its lease attempt
//! ([`member::lease::Lease`]), and the keeper's core ([`keeper::core`]). Around each stands a thin shell that does IO and
//! chooses nothing.
//!
//! | module | is | deliberately does not |
//! |---|---|---|
//! | [`model`] | plain values: time, WAL, members, cluster, lease, deadlines, local state, decisions | IO, clocks, wire formats |
//! | [`member`] | the machine: what is known, the decision, the check on it, the effects; the lease attempt | wait, read a clock, log, fail |
//! | [`decide`] | the whole decision, one file per situation; the check on it | remember, log, await, fail |
//! | [`driver`] | the loop, and the IO of each effect; configuration into values | choose: it knows no role, no lease, no timeline |
//! | [`dcs`] | the store's client; `desk` is all of it but the connection, `schema` spells every annotation key | decide, parse others' timestamps |
//! | [`postgres`] | files, SQL, control data, commands of this member's Postgres; the client of the keeper | start processes |
//! | [`keeper`] | the daemon that owns the postmaster and fences it when its permission lapses; `core` is what it decides | know Kubernetes, leases, SQL |
//! | [`door`] | what others may see of a member and ask of it | know HTTP, the machine, the driver |
//! | [`api`] | the REST API, through the door | touch the store or Postgres |
//! | [`ctl`] | `patronictl` | share state with a running member |
//! | [`config`] | file + environment + dynamic configuration → typed values | IO beyond the text it is given |
//! | [`tls`] | whose server certificate is accepted | choose how strictly |
//! | [`kubemem`] | an embedded Kubernetes API for the demo and the tests | import anything of ours |
//! | [`mutant`] | rules that tests take out | exist in a release build |
//! | [`demo`] | members from outside: the demo, the cluster tests and the benchmark drive them with it | |
//!
//! # Where to begin
//! * One event from watch to action: [`member::Input`], `member/absorb/`, [`decide::decide`], `member/emit/`, [`member::Effect`],
//!   `driver/perform.rs`.
//! * A rule of the cluster: [`decide::decide`], then the file of the situation, then its script in `tests/scenarios/`.
//! * What stops a primary that lost its lease: `decide/leader.rs` (`fence`), `keeper/core/fence.rs`, [`model::Timings`].
//! * What is on the wire: [`dcs::schema`] and [`keeper::protocol`].
//! * What always holds, and which tests would see its loss: `docs/invariants.md`.
//! * `src/bin/` only wires.
//!
//! # Words
//! * **lease, lock**: the leader record of the store, held by writing it again before its ttl has passed.
//! * **evidence**: the moment a confirmed renewal was *sent*; every deadline of a holder counts from it.
//! * **fence**: what stops a primary whose evidence is too old: itself (D), the keeper (S, K).
//! * **permission**: what the keeper may let run: no writer, one writer until two instants, or unfenced.
//! * **observer**: anybody else; counts the ttl by its own clock from the last *change* it received.
//! * **released / silent**: the record is there and names nobody / nothing was heard. Silence costs the full ttl.
//! * **proof of death**: every container named in the record is reported terminated by the kubelet, by fresh reads.
//! * **hand-over**: early CHECKPOINT, fast stop, a standby has it all, release.
//! * **scope**: the name of the cluster. **member**: a pod of it, named as the pod.

#![deny(unsafe_code)]

pub mod model;

pub mod decide;

pub mod member;

pub mod dcs;

pub mod postgres;

pub mod keeper;

pub mod driver;

pub mod door;

pub mod api;

pub mod ctl;

pub mod config;

pub mod tls;

pub mod kubemem;

pub mod demo;

#[doc(hidden)]
pub mod mutant;
