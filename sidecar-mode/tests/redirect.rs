//! `duet-sidecar init` in real network namespaces: where connections end up.
//!
//! In the proxy's place stands its own capture, which says of each connection
//! what direction it has and where it was going.
#![forbid(unsafe_code)]

mod netns;

use duet_core::capture::{Direction, Kernel};
use duet_sidecar::{PROXY_UID, capture};
use netns::{Netns, PEER_V4, PEER_V6, POD_V4, POD_V6, can_run, pod_and_peer};
use nix::unistd::{Uid, setfsuid};
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{self, BufRead, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Answers each line on the redirected ports with
/// `<direction> <original destination>`.
fn start_proxy(pod: &Netns) {
    let (ready, is_ready) = sync_channel(0);
    pod.spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let capture = capture::listen().unwrap();
            let mut tasks = JoinSet::new();
            for (direction, listeners) in [
                (Direction::Outbound, capture.outbound),
                (Direction::Inbound, capture.inbound),
            ] {
                for listener in listeners {
                    tasks.spawn(accept(listener, capture.kernel.clone(), direction));
                }
            }
            ready.send(()).unwrap();
            tasks.join_all().await;
        });
    });
    is_ready.recv().unwrap();
}

async fn accept(listener: TcpListener, kernel: Arc<dyn Kernel>, direction: Direction) {
    while let Ok((stream, _)) = listener.accept().await {
        let Ok(original) = kernel.original_dst(&stream, direction) else {
            continue;
        };
        let answer = format!("{} {original}\n", direction.as_str());
        tokio::spawn(answer_lines(stream, answer));
    }
}

async fn answer_lines(mut stream: TcpStream, answer: String) {
    let (read, mut write) = stream.split();
    let mut lines = BufReader::new(read).lines();
    while let Ok(Some(_)) = lines.next_line().await {
        if write.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// As [`Netns::ask`], over a socket of that uid.
fn ask_as(uid: u32, pod: &Netns, to: &str) -> io::Result<String> {
    pod.run(|| {
        setfsuid(Uid::from_raw(uid));
        let mut stream = std::net::TcpStream::connect(to)?;
        let mut line = String::new();
        stream.write_all(b"who are you?\n")?;
        io::BufReader::new(stream).read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    })
}

#[test]
fn outbound_connections_keep_their_destination() {
    if !can_run() {
        return;
    }
    let (pod, peer) = pod_and_peer();
    peer.serve("peer", 8080);
    pod.init("");
    start_proxy(&pod);
    for (to, original) in [
        (format!("{PEER_V4}:8080"), format!("{PEER_V4}:8080")),
        (format!("[{PEER_V6}]:8080"), format!("[{PEER_V6}]:8080")),
        (format!("[::ffff:{PEER_V4}]:81"), format!("{PEER_V4}:81")),
        // Nobody is there; that is for the proxy to find out.
        ("10.9.0.77:65535".into(), "10.9.0.77:65535".into()),
    ] {
        assert_eq!(pod.ask(&to).unwrap(), format!("outbound {original}"));
    }
}

/// The kernel gives one source port to several connections as long as they go to
/// different places; redirected, they all go to one.
#[test]
fn connections_from_one_port_are_told_apart() {
    if !can_run() {
        return;
    }
    let (pod, _peer) = pod_and_peer();
    pod.init("");
    start_proxy(&pod);
    for (from, to) in [
        (format!("{POD_V4}:40001"), PEER_V4.to_owned()),
        (format!("[{POD_V6}]:40001"), format!("[{PEER_V6}]")),
    ] {
        let mut open: Vec<_> = (8080..8090)
            .map(|port| {
                let to = format!("{to}:{port}");
                let conversation = pod.connect_from(&from, &to).unwrap();
                (to, conversation)
            })
            .collect();
        for (to, conversation) in &mut open {
            assert_eq!(conversation.ask().unwrap(), format!("outbound {to}"));
        }
    }
}

#[test]
fn inbound_connections_keep_their_destination() {
    if !can_run() {
        return;
    }
    let (pod, peer) = pod_and_peer();
    pod.serve("app", 8080);
    pod.init("");
    start_proxy(&pod);
    for to in [format!("{POD_V4}:8080"), format!("[{POD_V6}]:8080")] {
        assert_eq!(peer.ask(&to).unwrap(), format!("inbound {to}"));
    }
}

#[test]
fn the_pod_reaches_itself_without_the_proxy() {
    if !can_run() {
        return;
    }
    let (pod, _peer) = pod_and_peer();
    pod.serve("app", 8080);
    pod.init("");
    start_proxy(&pod);
    for (to, ip) in [
        ("127.0.0.1:8080".to_owned(), "127.0.0.1"),
        ("[::1]:8080".to_owned(), "::1"),
        (format!("{POD_V4}:8080"), POD_V4),
        (format!("[{POD_V6}]:8080"), POD_V6),
    ] {
        assert_eq!(pod.ask(&to).unwrap(), format!("app {to} {ip}"));
    }
}

#[test]
fn the_proxy_itself_and_excluded_uids_are_exempt() {
    if !can_run() {
        return;
    }
    let (pod, peer) = pod_and_peer();
    peer.serve("peer", 8080);
    pod.serve("app", 8081);
    pod.init("--exclude-uids 3001,3002");
    start_proxy(&pod);
    let (v4, v6) = (format!("{PEER_V4}:8080"), format!("[{PEER_V6}]:8080"));
    for uid in [PROXY_UID, 3001, 3002] {
        let direct = |to: &str, from| format!("peer {to} {from}");
        assert_eq!(ask_as(uid, &pod, &v4).unwrap(), direct(&v4, POD_V4));
        assert_eq!(ask_as(uid, &pod, &v6).unwrap(), direct(&v6, POD_V6));
    }
    assert_eq!(ask_as(3003, &pod, &v4).unwrap(), format!("outbound {v4}"));
    // The proxy delivers to the application, and not to itself again.
    let app = format!("{POD_V4}:8081");
    let delivered = ask_as(PROXY_UID, &pod, &app).unwrap();
    assert_eq!(delivered, format!("app {app} {POD_V4}"));
}

#[test]
fn excluded_ports_are_left_alone() {
    if !can_run() {
        return;
    }
    let (pod, peer) = pod_and_peer();
    for port in [8080, 9000, 9001] {
        peer.serve("peer", port);
    }
    for port in [8080, 9100, 15020, 15021] {
        pod.serve("app", port);
    }
    pod.init("--exclude-outbound-ports 9000,9001 --exclude-inbound-ports 9100");
    start_proxy(&pod);
    for port in [9000, 9001] {
        let answer = pod.ask(&format!("{PEER_V4}:{port}")).unwrap();
        assert_eq!(answer, format!("peer {PEER_V4}:{port} {POD_V4}"));
    }
    for port in [9100, 15020, 15021] {
        let answer = peer.ask(&format!("[{POD_V6}]:{port}")).unwrap();
        assert_eq!(answer, format!("app [{POD_V6}]:{port} {PEER_V6}"));
    }
    let others = [
        pod.ask(&format!("{PEER_V4}:8080")),
        peer.ask(&format!("{POD_V4}:8080")),
    ];
    let others = others.map(Result::unwrap);
    assert_eq!(others[0], format!("outbound {PEER_V4}:8080"));
    assert_eq!(others[1], format!("inbound {POD_V4}:8080"));
}

#[test]
fn init_twice_is_init_once_and_cuts_nothing() {
    if !can_run() {
        return;
    }
    let (pod, _peer) = pod_and_peer();
    pod.init("--exclude-outbound-ports 1");
    start_proxy(&pod);
    let to = format!("{PEER_V4}:8080");
    let mut open = pod.connect(&to).unwrap();
    open.ask().unwrap();

    pod.init("");
    let once = pod.nft("list ruleset");
    pod.init("");
    assert_eq!(pod.nft("list ruleset"), once);
    assert!(
        !once.contains("dport 1 accept"),
        "the first one's rules stayed: {once}"
    );
    assert_eq!(once.matches("redirect to :15001").count(), 1, "{once}");
    assert_eq!(open.ask().unwrap(), format!("outbound {to}"));
}

#[test]
fn remove_leaves_only_what_others_made() {
    if !can_run() {
        return;
    }
    let (pod, peer) = pod_and_peer();
    peer.serve("peer", 8080);
    pod.nft("add table inet somebody");
    pod.nft("add chain inet somebody else");
    let before = pod.nft("list ruleset");
    pod.init("");
    pod.init("--remove");
    assert_eq!(pod.nft("list ruleset"), before);
    pod.init("--remove");
    assert_eq!(pod.nft("list ruleset"), before);
    let to = format!("{PEER_V4}:8080");
    assert_eq!(pod.ask(&to).unwrap(), format!("peer {to} {POD_V4}"));
}

#[test]
fn without_its_proxy_the_pod_is_closed() {
    if !can_run() {
        return;
    }
    let (pod, peer) = pod_and_peer();
    peer.serve("peer", 8080);
    pod.serve("app", 8080);
    pod.init("");
    for (netns, to) in [
        (&pod, format!("{PEER_V4}:8080")),
        (&pod, format!("[{PEER_V6}]:8080")),
        (&peer, format!("{POD_V4}:8080")),
        (&peer, format!("[{POD_V6}]:8080")),
    ] {
        let error = netns.ask(&to).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{to}: {error}");
    }
}

#[test]
fn a_connection_from_before_init_does_not_go_on_in_plaintext() {
    if !can_run() {
        return;
    }
    let (pod, peer) = pod_and_peer();
    peer.serve("peer", 8080);
    let mut early = pod.connect(&format!("{PEER_V4}:8080")).unwrap();
    assert!(early.ask().unwrap().starts_with("peer "));
    pod.init("");
    let later = early.ask();
    assert!(later.is_err(), "it still talks: {later:?}");
}

/// Whoever may send what he likes, or has lost track of a connection, sends packets that
/// conntrack knows no connection for, and translates for nobody.
#[test]
fn what_conntrack_calls_invalid_gets_neither_out_nor_in() {
    if !can_run() {
        return;
    }
    let (pod, peer) = pod_and_peer();
    pod.init("--exclude-outbound-ports 8082 --exclude-inbound-ports 8082");
    for (pod_ip, peer_ip) in [(POD_V4, PEER_V4), (POD_V6, PEER_V6)] {
        let [pod_ip, peer_ip]: [IpAddr; 2] = [pod_ip, peer_ip].map(|ip| ip.parse().unwrap());
        let at_peer = peer.run(|| raw_tcp(peer_ip));
        send_invalid(&pod, 3003, peer_ip, 8081);
        // What is exempt gets there, which shows that the other would have been seen.
        send_invalid(&pod, 3003, peer_ip, 8082);
        send_invalid(&pod, PROXY_UID, peer_ip, 8083);
        assert_eq!(invalid_arrivals(&at_peer), [8082, 8083], "{peer_ip}");

        let at_pod = pod.run(|| raw_tcp(pod_ip));
        send_invalid(&peer, 0, pod_ip, 8081);
        send_invalid(&peer, 0, pod_ip, 8082);
        assert_eq!(invalid_arrivals(&at_pod), [8082], "{pod_ip}");
    }
}

/// Where the invalid packets came from.
const INVALID_SOURCE: u16 = 40_000;

/// Sends and sees TCP's packets from their header on, whatever the kernel makes of them.
fn raw_tcp(ip: IpAddr) -> Socket {
    let domain = Domain::for_address(SocketAddr::new(ip, 0));
    Socket::new(domain, Type::RAW, Some(Protocol::TCP)).unwrap()
}

/// SYN and FIN together (RFC 9293 has no such segment).
fn send_invalid(from: &Netns, uid: u32, to: IpAddr, port: u16) {
    let mut segment = [0; 20];
    segment[..2].copy_from_slice(&INVALID_SOURCE.to_be_bytes());
    segment[2..4].copy_from_slice(&port.to_be_bytes());
    segment[12] = 5 << 4;
    segment[13] = 0b11;
    from.run(|| {
        setfsuid(Uid::from_raw(uid));
        // A filter that drops what is sent may say so.
        let _ = raw_tcp(to).send_to(&segment, &SocketAddr::new(to, 0).into());
    });
}

/// The ports to which such packets came, until none has for a while.
fn invalid_arrivals(mut at: &Socket) -> Vec<u16> {
    at.set_read_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    let mut ports = Vec::new();
    let mut packet = [0; 128];
    while let Ok(length) = at.read(&mut packet) {
        let packet = &packet[..length];
        // IPv4 gives its own header too.
        let begins = match packet[0] >> 4 {
            4 if length > 20 => usize::from(packet[0] & 0xf) * 4,
            _ => 0,
        };
        let field = |at: usize| u16::from_be_bytes([packet[begins + at], packet[begins + at + 1]]);
        if field(0) == INVALID_SOURCE {
            ports.push(field(2));
        }
    }
    ports.sort_unstable();
    ports
}

#[test]
fn nobody_can_make_the_proxy_connect_to_itself() {
    if !can_run() {
        return;
    }
    let (pod, peer) = pod_and_peer();
    pod.init("");
    start_proxy(&pod);
    // From outside the outbound port does not exist, whatever it is called.
    for to in [format!("{POD_V4}:15001"), format!("[{POD_V6}]:15001")] {
        let error = peer.ask(&to).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{to}: {error}");
    }
    for (netns, to) in [
        (&peer, format!("{POD_V4}:15006")),
        (&peer, format!("[{POD_V6}]:15006")),
        (&pod, "127.0.0.1:15001".into()),
        (&pod, "[::1]:15001".into()),
        (&pod, format!("{POD_V4}:15006")),
    ] {
        let mut connection = netns.connect(&to).unwrap();
        assert!(
            connection.is_closed(),
            "{to} was taken for a redirected one"
        );
    }
}

#[test]
fn what_is_missing_is_said_in_one_line() {
    if !can_run() {
        return;
    }
    let (pod, _peer) = pod_and_peer();
    // A copy: the build's directory may be closed to the proxy's user.
    let sidecar = std::env::temp_dir().join(format!("duet-sidecar-{}", std::process::id()));
    std::fs::copy(env!("CARGO_BIN_EXE_duet-sidecar"), &sidecar).unwrap();
    let says = |args: &str, path: &str, uid: u32| {
        let output = pod.run(|| {
            Command::new(&sidecar)
                .args(args.split(' '))
                .env("PATH", path)
                .uid(uid)
                .output()
                .unwrap()
        });
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(stderr.lines().count(), 1, "one line: {stderr}");
        assert_eq!(output.status.code(), Some(78), "{stderr}");
        stderr
    };
    let path = std::env::var("PATH").unwrap();
    assert!(says("init", "/nonexistent", 0).contains("cannot run nft"));
    assert!(says("init", &path, PROXY_UID).contains("NET_ADMIN"));
    let run = "run --workload a/b --control https://[::1]:1 --trust-bundle /x --token-file /x";
    assert!(says(run, &path, 0).contains("only uid 2102 is exempt"));
    assert!(pod.nft("list ruleset").is_empty(), "nothing was changed");
    std::fs::remove_file(&sidecar).unwrap();
}
