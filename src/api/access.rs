//! Who may change something: allowlist, client certificate, basic authentication, in this order.

use std::net::{IpAddr, SocketAddr};

use axum::http::{HeaderMap, header};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ipnet::IpNet;

use super::Client;
use super::commands::Route;
use super::routes::Reply;
use crate::door::Handle;

/// The refusal, if there is one.
pub(super) async fn refuse(
    handle: &Handle,
    headers: &HeaderMap,
    client: Option<Client>,
    route: Route,
) -> Option<Reply> {
    let settings = handle.api_settings().borrow().clone();
    // A failsafe ping comes from a primary that may have lost its view of the members, and so may we: the list is not
    // asked.
    let members = settings.allowlist_include_members && route != Route::Failsafe;
    if members || !settings.allowlist.is_empty() {
        let welcome = match client {
            Some(client) => allowed(handle, &settings.allowlist, members, client.addr.ip()).await,
            None => false,
        };
        if !welcome {
            return Some(Reply::text(403, "Access is denied"));
        }
    }
    let verify = settings.verify_client.as_deref().map(str::to_ascii_lowercase);
    let wants_certificate = settings.certfile.is_some() && matches!(verify.as_deref(), Some("required" | "optional"));
    if wants_certificate && !client.is_some_and(|c| c.certified) {
        return Some(Reply::text(403, "client certificate required"));
    }
    let (user, password) = settings.authentication.as_ref()?;
    match headers.get(header::AUTHORIZATION) {
        None => Some(Reply::text(401, "no auth header received")),
        Some(given) => {
            let wanted = format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
            (!same(given.as_bytes(), wanted.as_bytes())).then(|| Reply::text(401, "not authenticated"))
        }
    }
}

/// Comparison in a time that depends on the lengths alone.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |acc, (x, y)| acc | (x ^ y)) == 0
}

async fn allowed(handle: &Handle, allowlist: &[String], members: bool, ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    for entry in allowlist {
        if entry.parse::<IpNet>().is_ok_and(|net| net.contains(&ip)) || resolves_to(entry, ip).await {
            return true;
        }
    }
    if !members {
        return false;
    }
    let cluster = handle.snapshot().cluster.clone();
    for url in cluster.members.values().filter_map(|m| m.api_url.as_deref()) {
        if let Some(host) = host_of(url)
            && resolves_to(&host, ip).await
        {
            return true;
        }
    }
    false
}

async fn resolves_to(host: &str, ip: IpAddr) -> bool {
    if let Ok(literal) = host.parse::<IpAddr>() {
        return literal.to_canonical() == ip;
    }
    if host.contains('/') {
        return false;
    }
    let found = tokio::time::timeout(std::time::Duration::from_secs(2), tokio::net::lookup_host((host, 0))).await;
    match found {
        Ok(Ok(mut addrs)) => addrs.any(|a: SocketAddr| a.ip().to_canonical() == ip),
        Ok(Err(_)) | Err(_) => false,
    }
}

fn host_of(url: &str) -> Option<String> {
    let authority = url.split_once("://")?.1.split('/').next()?;
    let host =
        if authority.ends_with(']') { authority } else { authority.rsplit_once(':').map_or(authority, |(h, _)| h) };
    Some(host.trim_start_matches('[').trim_end_matches(']').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_come_out_of_api_urls() {
        assert_eq!(host_of("http://10.0.0.4:8008/patroni").as_deref(), Some("10.0.0.4"));
        assert_eq!(host_of("https://[fd00::1]:8008/patroni").as_deref(), Some("fd00::1"));
    }

    #[test]
    fn credentials_are_compared_whole() {
        assert!(same(b"abc", b"abc"));
        assert!(!same(b"abc", b"abd"));
        assert!(!same(b"abc", b"ab"));
    }
}
