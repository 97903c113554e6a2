//! The ways from inside a pod to a proxy's private key, or to another certificate.

use super::{PATIENCE, Told};
use clap::Args;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// Flags of `duet-bench forge key`.
#[derive(Args, Clone, Debug)]
pub struct KeyArgs {
    /// The proxy's process
    #[arg(long)]
    pid: u32,

    /// What it proves itself with
    #[arg(long)]
    token: PathBuf,

    /// An agent's local API
    #[arg(long)]
    socket: Option<PathBuf>,
}

/// The proxy's own pages, and what would be in them if they gave a key away.
const ADMIN: u16 = 15000;
const PAGES: [&str; 4] = ["/config", "/identity", "/connections", "/metrics"];
const SECRET: &str = "PRIVATE KEY";

/// Tries each; `accepted` means that it is open.
pub async fn ways(args: &KeyArgs) -> Vec<Told> {
    let process = PathBuf::from(format!("/proc/{}", args.pid));
    let mut ways = vec![
        ("memory of the process", readable(&process.join("mem"))),
        ("its environment", readable(&process.join("environ"))),
        ("its open files", fs::read_dir(process.join("fd")).map(drop)),
        ("its token", readable(&args.token)),
        ("its admin pages", told_secret()),
    ];
    if let Some(socket) = &args.socket {
        ways.push((
            "the agent's local API",
            UnixStream::connect(socket).map(drop),
        ));
    }
    ways.into_iter()
        .map(|(way, outcome)| Told {
            accepted: outcome.is_ok(),
            said: match outcome {
                Ok(()) => way.to_owned(),
                Err(error) => format!("{way}: {error}"),
            },
        })
        .collect()
}

fn readable(path: &Path) -> io::Result<()> {
    let mut file = File::open(path)?;
    match file.read(&mut [0]) {
        // There is nothing at a process's address 0, but it was allowed to look.
        Err(error) if error.raw_os_error() != Some(nix::errno::Errno::EIO as i32) => Err(error),
        _ => Ok(()),
    }
}

/// Whether any page that the pod may ask for holds a private key. The agent's is not on the pod's loopback.
fn told_secret() -> io::Result<()> {
    for page in PAGES {
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, ADMIN));
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(
            stream,
            "GET {page} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
        )?;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        if String::from_utf8_lossy(&answer).contains(SECRET) {
            return Ok(());
        }
    }
    Err(io::Error::other("no page holds a private key"))
}
