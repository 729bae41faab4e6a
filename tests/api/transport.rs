//! Connections: keep-alive, headers, listening.

use std::sync::Arc;
use std::time::Duration;

use patroni::api;
use patroni::door::ApiSettings;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::world::{Says, World, as_primary, exchange, leader};

async fn world(settings: ApiSettings) -> World {
    World::with(leader(), Says::Status(as_primary()), settings).await
}

/// Ours: HTTP/1.1. Checks of load balancers need no new connection each time.
#[tokio::test]
async fn connections_are_kept() {
    let world = world(ApiSettings::default()).await;
    let mut stream = TcpStream::connect(world.addr).await.unwrap();
    for (method, path, status) in
        [("GET", "/primary", 200), ("HEAD", "/replica", 503), ("GET", "/liveness", 200), ("POST", "/x", 501)]
    {
        let reply = exchange(&mut stream, method, path, &[], None).await;
        assert_eq!(reply.status, status, "{method} {path}");
        assert!(reply.header("content-length").is_some() && reply.header("date").is_some(), "{reply:?}");
    }
}

/// A client of HTTP/1.0 gets what it is used to: the reply, then the end of the connection.
#[tokio::test]
async fn an_old_client_sees_the_connection_close() {
    let world = world(ApiSettings::default()).await;
    let mut stream = TcpStream::connect(world.addr).await.unwrap();
    stream.write_all(b"GET /primary HTTP/1.0\r\n\r\n").await.unwrap();
    let mut text = String::new();
    tokio::time::timeout(Duration::from_secs(5), stream.read_to_string(&mut text)).await.unwrap().unwrap();
    assert!(text.starts_with("HTTP/1.0 200 OK\r\n") && text.contains("\"role\": \"primary\""), "{text}");
}

#[tokio::test]
async fn extra_headers_are_added_except_to_pages_and_status_only_replies() {
    let settings = ApiSettings {
        http_extra_headers: [("X-A".to_owned(), "b".to_owned())].into(),
        https_extra_headers: [("X-Over".to_owned(), "tls".to_owned())].into(),
        ..ApiSettings::default()
    };
    let world = world(settings).await;
    let reply = world.get("/primary").await;
    assert_eq!((reply.header("x-a"), reply.header("x-over")), (Some("b"), None));
    assert_eq!(world.ask("POST", "/x", None).await.header("x-a"), None);
    assert_eq!(world.get("/liveness").await.header("x-a"), None);
    for (tokens, server) in [("Minimal", "Patroni/4.1.5"), ("productonly", "Patroni"), ("Original", "Patroni/4.1.5")] {
        world.settings.send_modify(|s| Arc::make_mut(s).server_tokens = Some(tokens.to_owned()));
        assert_eq!(world.get("/primary").await.header("server"), Some(server), "{tokens}");
    }
}

#[tokio::test]
async fn an_occupied_port_and_a_bad_address_are_one_clear_line() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = taken.local_addr().unwrap().port();
    let why = |listen: &str| {
        let settings = ApiSettings { listen: listen.to_owned(), ..ApiSettings::default() };
        api::bind(&Arc::new(settings)).err().unwrap()
    };
    let expected = format!("restapi.listen: port {port} is already in use; stop what uses it or choose another");
    assert_eq!(why(&format!("127.0.0.1:{port}")), expected);
    assert_eq!(why("8008"), "restapi.listen: '8008' is not HOST:PORT, e.g. 0.0.0.0:8008");
    for listen in ["192.0.2.1:8008", "no-such-host.invalid:8008", "127.0.0.1:http"] {
        let line = why(listen);
        assert!(line.starts_with("restapi.listen: ") && !line.contains('\n'), "{line}");
    }
    let missing = ApiSettings {
        listen: "127.0.0.1:0".into(),
        certfile: Some("/nowhere/tls.crt".into()),
        ..ApiSettings::default()
    };
    let line = api::bind(&Arc::new(missing)).err().unwrap();
    assert!(line.starts_with("restapi.certfile: /nowhere/tls.crt: "), "{line}");
}

#[tokio::test]
async fn a_new_address_is_listened_on_after_a_reload_and_a_bad_one_changes_nothing() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut world = world(ApiSettings::default()).await;
    world.settings.send_modify(|s| Arc::make_mut(s).listen = "192.0.2.1:8008".into());
    assert_eq!(world.get("/primary").await.status, 200, "stays where it is");
    world.settings.send_modify(|s| Arc::make_mut(s).listen = free.to_string());
    world.addr = free;
    let connects = async {
        while TcpStream::connect(free).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), connects).await.expect("listens on the new address");
    assert_eq!(world.get("/primary").await.status, 200);
}

/// `--nocapture` shows the rate. The target (20 000 requests/s in a release build) is the bench's; a debug build that is
/// a hundred times slower has lost the shared query or the shared document.
#[tokio::test]
async fn sixty_four_clients_are_served_by_shared_answers() {
    let world = world(ApiSettings::default()).await;
    let began = tokio::time::Instant::now();
    let clients: Vec<_> = (0..64)
        .map(|_| {
            let addr = world.addr;
            tokio::spawn(async move {
                let mut stream = TcpStream::connect(addr).await.unwrap();
                for _ in 0..50 {
                    assert_eq!(exchange(&mut stream, "GET", "/primary", &[], None).await.status, 200);
                }
            })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    let took = began.elapsed();
    println!("3200 requests, server and clients on one thread, debug build: {:.0}/s", 3200.0 / took.as_secs_f64());
    assert!(took < Duration::from_secs(16), "{took:?}");
}
