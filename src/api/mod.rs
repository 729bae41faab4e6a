//! The REST API (rest-api.md): what people, probes, other members and patronictl ask this member.
//!
//! Reading order: [`serve`] (listener, TLS, reload) → `routes` (which handler) → `status` (the node status document) →
//! `health` (200 or 503) → `cluster` (GET /cluster, /history, /config) → `commands` (everything that changes something) →
//! `access` (who may) → `metrics`, `json`, `times`.
//!
//! Answers never wait for the store or the decision loop, and for Postgres only within the bound of
//! [`Handle::postgres_status`]. Only commands wait, each with a deadline of its own. The module knows no store, no
//! Postgres and no decision: everything comes through [`Handle`].

mod access;
mod cluster;
mod commands;
mod health;
mod json;
mod metrics;
mod routes;
mod status;
mod times;
mod tls;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket};
use tokio_rustls::TlsAcceptor;
use tower_service::Service as _;
use tracing::{debug, error, info};

use crate::door::{ApiSettings, Handle};

/// A client has this long to send the head of its request; a slow one does not hold a connection for ever.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// A TLS handshake that takes longer is given up.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections at a time; above it new ones wait in the backlog.
const CONNECTIONS_MAX: usize = 512;
/// The least backlog: Patroni's default of 5 drops connections of a busy load balancer.
const BACKLOG_MIN: u32 = 128;

/// Who is at the other end of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Client {
    /// Its address.
    pub addr: SocketAddr,
    /// It showed a certificate that was verified.
    pub certified: bool,
}

/// A listener that is bound; serving begins with [`Bound::serve`].
pub struct Bound {
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    settings: Arc<ApiSettings>,
}

/// Binds `restapi.listen` and loads the certificate.
///
/// # Errors
/// One line naming the key of the configuration: address malformed or occupied, certificate unreadable.
pub fn bind(settings: &Arc<ApiSettings>) -> Result<Bound, String> {
    let listen = &settings.listen;
    let addrs = listen_addresses(listen)
        .ok_or_else(|| format!("restapi.listen: '{listen}' is not HOST:PORT, e.g. 0.0.0.0:8008"))?;
    let tls = tls::acceptor(settings)?;
    let mut last = String::new();
    for addr in addrs {
        match listen_on(addr, settings.request_queue_size.max(BACKLOG_MIN)) {
            Ok(listener) => return Ok(Bound { listener, tls, settings: settings.clone() }),
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
                last = format!(
                    "restapi.listen: port {} is already in use; stop what uses it or choose another",
                    addr.port()
                );
            }
            Err(e) => last = format!("restapi.listen: cannot listen on {addr}: {e}"),
        }
    }
    Err(last)
}

/// What [`bind`] would refuse whatever address is free: options and files of TLS.
///
/// # Errors
/// One line naming the key of the configuration.
pub fn check(settings: &ApiSettings) -> Result<(), String> {
    tls::acceptor(settings).map(|_| ())
}

/// Empty host and `*` mean every interface, both families if the machine has them.
fn listen_addresses(listen: &str) -> Option<Vec<SocketAddr>> {
    let (host, port) = listen.rsplit_once(':')?;
    let port: u16 = port.parse().ok()?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if host.is_empty() || host == "*" {
        return Some(vec![SocketAddr::from(([0u16; 8], port)), SocketAddr::from(([0u8; 4], port))]);
    }
    if let Ok(ip) = host.parse() {
        return Some(vec![SocketAddr::new(ip, port)]);
    }
    use std::net::ToSocketAddrs as _;
    let found: Vec<_> = (host, port).to_socket_addrs().ok()?.collect();
    (!found.is_empty()).then_some(found)
}

fn listen_on(addr: SocketAddr, backlog: u32) -> io::Result<TcpListener> {
    let socket = if addr.is_ipv6() { TcpSocket::new_v6()? } else { TcpSocket::new_v4()? };
    socket.set_reuseaddr(true)?;
    if addr.is_ipv6() {
        rustix::net::sockopt::set_ipv6_v6only(&socket, false)?;
    }
    socket.bind(addr)?;
    socket.listen(backlog)
}

impl Bound {
    /// The address in use.
    ///
    /// # Errors
    /// When the socket has none, which a bound one always has.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until the process ends. A changed `listen` or TLS option makes a new listener; if that fails the old one
    /// stays and the log says why.
    pub async fn serve(mut self, handle: Handle) {
        let router = routes::router(handle.clone());
        let mut settings = handle.api_settings();
        let slots = Arc::new(tokio::sync::Semaphore::new(CONNECTIONS_MAX));
        loop {
            let Ok(slot) = slots.clone().acquire_owned().await else { return };
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, addr)) => {
                        let (router, tls) = (router.clone(), self.tls.clone());
                        tokio::spawn(async move {
                            connection(stream, addr, tls, router).await;
                            drop(slot);
                        });
                    }
                    Err(e) => {
                        error!("REST API: accept: {e}");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
                changed = settings.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let new = settings.borrow_and_update().clone();
                    self.rebind(new).await;
                }
            }
        }
    }

    async fn rebind(&mut self, new: Arc<ApiSettings>) {
        let old = std::mem::replace(&mut self.settings, new.clone());
        if old.listen == new.listen {
            match tls::acceptor(&new) {
                Ok(tls) => self.tls = tls,
                Err(e) => error!("REST API keeps its certificate: {e}"),
            }
            return;
        }
        match bind(&new) {
            Ok(bound) => {
                info!("REST API listens on {}", new.listen);
                *self = bound;
            }
            Err(e) => error!("REST API stays on {}: {e}", old.listen),
        }
    }
}

async fn connection(stream: tokio::net::TcpStream, addr: SocketAddr, tls: Option<TlsAcceptor>, router: Router) {
    if let Err(e) = notice_the_dead(&stream) {
        debug!("REST API: {addr}: socket options: {e}");
    }
    let Some(acceptor) = tls else {
        return http(stream, Client { addr, certified: false }, router).await;
    };
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => {
            let certified = stream.get_ref().1.peer_certificates().is_some_and(|c| !c.is_empty());
            http(stream, Client { addr, certified }, router).await;
        }
        Ok(Err(e)) => debug!("REST API: TLS handshake with {addr}: {e}"),
        Err(_) => debug!("REST API: TLS handshake with {addr} timed out"),
    }
}

/// Answers leave at once, and a client whose machine is gone holds no connection.
fn notice_the_dead(stream: &tokio::net::TcpStream) -> io::Result<()> {
    use rustix::net::sockopt;
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_user_timeout(stream, 10_000)?;
    sockopt::set_tcp_keepidle(stream, Duration::from_secs(3))?;
    sockopt::set_tcp_keepintvl(stream, Duration::from_secs(2))?;
    sockopt::set_tcp_keepcnt(stream, 3)?;
    Ok(())
}

async fn http(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, client: Client, router: Router) {
    let service = hyper::service::service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(client);
        let mut router = router.clone();
        async move { router.call(request.map(axum::body::Body::new) as Request).await }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(e) = served {
        debug!("REST API: {}: {e}", client.addr);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listen_takes_what_patroni_takes() {
        assert_eq!(listen_addresses("127.0.0.1:8008"), Some(vec![SocketAddr::from(([127, 0, 0, 1], 8008))]));
        assert_eq!(listen_addresses("[::1]:1").map(|a| a[0].is_ipv6()), Some(true));
        assert_eq!(listen_addresses("*:8008").map(|a| a.len()), Some(2));
        assert_eq!(listen_addresses("8008"), None);
        assert_eq!(listen_addresses("h:port"), None);
    }
}
