//! A client that makes mTLS connections and nothing else, each with a full handshake.

use crate::stress::Careless;
use clap::Args;
use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The hidden command.
pub const HANDSHAKES: &str = "handshakes";
/// One every so often, if the server is quick enough.
const EVERY: Duration = Duration::from_millis(5);
const PATIENCE: Duration = Duration::from_secs(5);

/// Flags of `duet-bench handshakes`.
#[derive(Args, Debug)]
pub struct HandshakesArgs {
    /// With whom
    #[arg(long)]
    to: SocketAddr,

    /// For how long
    #[arg(long, value_parser = humantime::parse_duration)]
    time: Duration,

    /// Directory with cert.pem and key.pem
    #[arg(long)]
    identity: PathBuf,
}

/// Prints how many were made.
pub fn make(args: &HandshakesArgs) -> Result<(), Box<dyn std::error::Error>> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let chain = vec![CertificateDer::from_pem_file(
        args.identity.join("cert.pem"),
    )?];
    let key = PrivateKeyDer::from_pem_file(args.identity.join("key.pem"))?;
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Careless(provider)))
        .with_client_auth_cert(chain, key)?;
    config.resumption = Resumption::disabled();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let config = Arc::new(config);
    let end = Instant::now() + args.time;
    let mut made = 0;
    while Instant::now() < end {
        let next = Instant::now() + EVERY;
        let mut tcp = TcpStream::connect_timeout(&args.to, PATIENCE)?;
        tcp.set_read_timeout(Some(PATIENCE))?;
        let name = ServerName::IpAddress(args.to.ip().into());
        let mut tls = ClientConnection::new(config.clone(), name)?;
        while tls.is_handshaking() {
            tls.complete_io(&mut tcp)?;
        }
        while tls.wants_write() {
            tls.write_tls(&mut tcp)?;
        }
        tcp.flush()?;
        // The server closes when it has read all, the client's certificate included.
        tcp.shutdown(Shutdown::Write)?;
        while tcp.read(&mut [0; 4096]).is_ok_and(|count| count > 0) {}
        made += 1;
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    println!("{made}");
    Ok(())
}
