//! The REST API against its contract, table by table. The member behind it is made of values
//! (`api/world.rs`); the server, the sockets, TLS and the bytes are real.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

#[path = "api/access.rs"]
mod access;
#[path = "api/change.rs"]
mod change;
#[path = "api/health.rs"]
mod health;
#[path = "api/read.rs"]
mod read;
#[path = "api/transport.rs"]
mod transport;
#[path = "api/world.rs"]
mod world;
