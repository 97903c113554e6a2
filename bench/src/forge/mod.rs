//! What somebody tries who is not who they say: the attacks of X3 and X4, made from inside a pod.
//!
//! Each prints what it was told. Whether it should have been is the scenario's business.

mod certificate;
mod key;

use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// The hidden command.
pub const FORGE: &str = "forge";
/// How long anybody may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// Flags of `duet-bench forge`.
#[derive(Args, Clone, Debug)]
pub struct ForgeArgs {
    #[command(subcommand)]
    attempt: Attempt,
}

#[derive(Clone, Debug, Subcommand)]
enum Attempt {
    /// Asks duet-control for a workload's certificate
    Identity(Credentials),
    /// With a workload's certificate, asks a proxy for an address
    Destination {
        #[command(flatten)]
        credentials: Credentials,

        /// The proxy
        #[arg(long, value_name = "ADDRESS:PORT")]
        proxy: SocketAddr,

        /// What is asked of it
        #[arg(long, value_name = "ADDRESS:PORT")]
        authority: SocketAddr,
    },
    /// Sends a text over a socket with a mark
    Mark {
        /// Where to
        #[arg(long, value_name = "ADDRESS:PORT")]
        to: SocketAddr,

        /// What is sent
        #[arg(long)]
        text: String,

        /// Of the socket; none by default
        #[arg(long)]
        mark: Option<u32>,
    },
    /// Tries the ways to a proxy's key
    Key(key::KeyArgs),
}

/// With what somebody proves themself to duet-control, and for whom.
#[derive(Args, Clone, Debug)]
struct Credentials {
    #[arg(long)]
    control: String,

    #[arg(long)]
    trust_bundle: PathBuf,

    #[arg(long)]
    token: PathBuf,

    /// `namespace/name`
    #[arg(long)]
    workload: String,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// Whether it was let do it.
    pub accepted: bool,
    /// In whose words.
    pub said: String,
}

/// Makes the attempt and prints what came of it, one line of JSON for each.
pub async fn run(args: ForgeArgs) -> Result<(), String> {
    let told = match args.attempt {
        Attempt::Identity(credentials) => {
            vec![Told::of(
                certificate::ask(&credentials)
                    .await
                    .map(|_| "a certificate".to_owned()),
            )]
        }
        Attempt::Destination {
            credentials,
            proxy,
            authority,
        } => {
            // What is to be tried is what the proxy says, so this has to succeed.
            let held = certificate::ask(&credentials).await?;
            vec![Told::of(
                certificate::connect(&held, proxy, authority).await,
            )]
        }
        Attempt::Mark { to, text, mark } => vec![Told::of(send(to, &text, mark))],
        Attempt::Key(args) => key::ways(&args).await,
    };
    for one in told {
        let json = serde_json::to_string(&one).map_err(|error| error.to_string())?;
        println!("{json}");
    }
    Ok(())
}

/// Sends a text and waits for anything to come back.
fn send(to: SocketAddr, text: &str, mark: Option<u32>) -> Result<String, String> {
    let told = || -> std::io::Result<usize> {
        let domain = socket2::Domain::for_address(to);
        let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
        if let Some(mark) = mark {
            socket.set_mark(mark)?;
        }
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect_timeout(&to.into(), PATIENCE)?;
        let mut stream = std::net::TcpStream::from(socket);
        write!(
            stream,
            "GET /{text} HTTP/1.1\r\nhost: {to}\r\nconnection: close\r\n\r\n"
        )?;
        stream.read(&mut [0; 1024])
    };
    match told() {
        Ok(read) => Ok(format!("{read} bytes came back")),
        Err(error) => Err(error.to_string()),
    }
}

impl Told {
    fn of(result: Result<String, String>) -> Self {
        match result {
            Ok(said) => Self {
                accepted: true,
                said,
            },
            Err(said) => Self {
                accepted: false,
                said,
            },
        }
    }
}
