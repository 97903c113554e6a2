//! `tap`: requests and connections of a workload, as they end.

use crate::cli::{Global, Output, TapArgs};
use crate::cluster::{Cluster, Error, one_line};
use crate::connections::find;
use crate::output::{bytes, print, took};
use crate::proxy::{ProxyPod, question};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde::Deserialize;
use std::process::ExitCode;
use std::time::Duration;
use tokio::sync::mpsc;

/// Lines that wait to be written; the proxies count what is more.
const QUEUE: usize = 64;
/// The longest line that a proxy may send.
const LONGEST: usize = 256 << 10;

/// A line of a tap.
#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum Line {
    Request(Record),
    Connection(Record),
    Failure(Failed),
    Dropped { count: u64 },
}

#[derive(Deserialize)]
struct Record {
    time: String,
    direction: String,
    workload: String,
    client: String,
    server: Option<String>,
    peer: String,
    tls: bool,
    protocol: String,
    method: Option<String>,
    authority: Option<String>,
    path: Option<String>,
    status: Option<u16>,
    sent_bytes: Option<u64>,
    received_bytes: Option<u64>,
    duration_us: u64,
    error: Option<String>,
}

#[derive(Deserialize)]
struct Failed {
    time: String,
    direction: String,
    workload: String,
    reason: String,
    error: String,
}

pub async fn run(cluster: &Cluster, global: &Global, args: &TapArgs) -> Result<ExitCode, Error> {
    let proxies = find(cluster, global, &args.target).await?;
    let (sender, mut lines) = mpsc::channel(QUEUE);
    let rate = args.rate.to_string();
    for (proxy, workloads) in proxies {
        let workloads = workloads.iter().map(|name| ("workload", name.as_str()));
        let filters = [
            ("direction", args.direction.map(|one| one.as_str())),
            ("path", args.path.as_deref()),
            ("method", args.method.as_deref()),
            ("peer", args.peer.as_deref()),
            ("rate", Some(rate.as_str())),
        ];
        let filters = filters
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?)));
        let answer = proxy
            .ask(cluster, &question("/tap", workloads.chain(filters)))
            .await?;
        let status = answer.status();
        if !status.is_success() {
            let said = answer.into_body().collect().await.map_or_else(
                |error| error.to_string(),
                |body| one_line(&String::from_utf8_lossy(&body.to_bytes())),
            );
            return Err(proxy.refused(status.as_u16(), &said));
        }
        tokio::spawn(follow(proxy, answer.into_body(), sender.clone()));
    }
    drop(sender);
    if global.output != Output::Json {
        eprintln!("tapping {}: Ctrl-C ends it", args.target);
    }

    let end = tokio::time::sleep(args.duration.unwrap_or(Duration::MAX));
    let mut end = std::pin::pin!(end);
    let mut left = args.count.unwrap_or(u64::MAX);
    while left > 0 {
        let line = tokio::select! {
            line = lines.recv() => line,
            () = &mut end => break,
        };
        let Some(line) = line else {
            return Err(Error::Proxy("every proxy has ended its tap".to_owned()));
        };
        let read = serde_json::from_str(&line);
        if !matches!(read, Ok(Line::Dropped { .. })) {
            left -= 1;
        }
        match (global.output, read) {
            (Output::Json, _) | (_, Err(_)) => print(&format!("{line}\n"))?,
            (Output::Table, Ok(read)) => print(&(read.show(false) + "\n"))?,
            (Output::Wide, Ok(read)) => print(&(read.show(true) + "\n"))?,
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Hands on a proxy's lines until it, or whoever reads them, has had enough.
async fn follow(proxy: ProxyPod, mut body: Incoming, lines: mpsc::Sender<String>) {
    let mut read = Vec::new();
    while let Some(Ok(frame)) = body.frame().await {
        let Ok(data) = frame.into_data() else {
            continue;
        };
        read.extend_from_slice(&data);
        while let Some(end) = read.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = read.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line[..end]).into_owned();
            if lines.send(line).await.is_err() {
                return;
            }
        }
        if read.len() > LONGEST {
            break;
        }
    }
    eprintln!("kubectl duet: the tap of {} has ended", proxy.name());
}

// === impl Line ===

impl Line {
    fn show(&self, wide: bool) -> String {
        match self {
            Self::Request(record) => {
                let method = record.method.as_deref().unwrap_or("?");
                let authority = record.authority.as_deref().unwrap_or_default();
                let path = record.path.as_deref().unwrap_or_default();
                let status = record
                    .status
                    .map_or_else(String::new, |status| status.to_string());
                record.show(&format!("{method} {authority}{path} {status}"), wide)
            }
            Self::Connection(record) => {
                let sent = bytes(record.sent_bytes.unwrap_or_default());
                let received = bytes(record.received_bytes.unwrap_or_default());
                record.show(&format!("sent {sent}, received {received}"), wide)
            }
            Self::Failure(failed) => {
                let Failed {
                    workload,
                    reason,
                    error,
                    ..
                } = failed;
                let (at, direction) = (clock(&failed.time), short(&failed.direction));
                format!(
                    "{at} {direction} {workload} FAILED {reason}: {}",
                    one_line(error)
                )
            }
            Self::Dropped { count } => {
                format!("-- {count} more came by than --rate allows, and are not shown")
            }
        }
    }
}

impl Record {
    fn show(&self, what: &str, wide: bool) -> String {
        let from = if self.direction == "inbound" {
            "from"
        } else {
            "to"
        };
        let how = if self.tls { "mTLS" } else { "plaintext" };
        let mut line = format!(
            "{} {} {} {from} {} {how} {} {what} {}",
            clock(&self.time),
            short(&self.direction),
            self.workload,
            self.peer,
            self.protocol,
            took(Duration::from_micros(self.duration_us)),
        );
        if wide {
            let server = self.server.as_deref().unwrap_or("-");
            line = format!("{line} {} -> {server}", self.client);
        }
        if let Some(error) = &self.error {
            line = format!("{line} CUT: {}", one_line(error));
        }
        line
    }
}

fn short(direction: &str) -> &str {
    match direction {
        "inbound" => "in ",
        "outbound" => "out",
        other => other,
    }
}

/// The time of day, to the millisecond, of an RFC 3339 time.
fn clock(time: &str) -> String {
    let of_day = time.split_once('T').map_or(time, |(_, of_day)| of_day);
    let of_day = of_day.trim_end_matches('Z');
    match of_day.split_once('.') {
        Some((seconds, fraction)) => format!("{seconds}.{fraction:0<3.3}"),
        None => format!("{of_day}.000"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(line: &str, wide: bool) -> String {
        serde_json::from_str::<Line>(line).unwrap().show(wide)
    }

    #[test]
    fn lines_read_from_left_to_right() {
        let request = r#"{"kind":"request","time":"2025-11-24T12:03:04.12349Z","direction":"inbound",
            "workload":"shop/web-0","client":"10.0.0.1:5","server":"10.0.0.2:80","peer":"shop/cart",
            "tls":true,"protocol":"http/1","method":"GET","authority":"web","path":"/cart",
            "status":200,"duration_us":1250}"#;
        let shown = "12:03:04.123 in  shop/web-0 from shop/cart mTLS http/1 GET web/cart 200 1.2ms";
        assert_eq!(show(request, false), shown);
        assert_eq!(
            show(request, true),
            format!("{shown} 10.0.0.1:5 -> 10.0.0.2:80")
        );
        let connection = r#"{"kind":"connection","time":"2025-11-24T12:03:04Z","direction":"outbound",
            "workload":"shop/web-0","client":"10.0.0.1:5","server":"10.0.0.2:80","peer":"external",
            "tls":false,"protocol":"tcp","sent_bytes":9,"received_bytes":12000,
            "duration_us":2000000,"error":"server: reset"}"#;
        assert_eq!(
            show(connection, false),
            "12:03:04.000 out shop/web-0 to external plaintext tcp sent 9 B, received 12 kB 2.0s CUT: server: reset"
        );
        let failure = r#"{"kind":"failure","time":"2025-11-24T12:03:04.5Z","direction":"inbound",
            "workload":"shop/web-0","reason":"plaintext_refused","error":"mTLS\n is strict"}"#;
        assert_eq!(
            show(failure, false),
            "12:03:04.500 in  shop/web-0 FAILED plaintext_refused: mTLS is strict"
        );
        let dropped = r#"{"kind":"dropped","count":7}"#;
        assert!(show(dropped, false).starts_with("-- 7 more"));
    }
}
