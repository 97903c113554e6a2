//! Protocols that no proxy knows.

use sha2::{Digest, Sha256};
use std::io;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const CHUNK: usize = 64 * 1024;

/// Writes `length` bytes that repeat nowhere nearby, closes the direction, and
/// returns their hash.
pub async fn send(
    to: &mut (impl AsyncWrite + Unpin),
    length: usize,
    seed: u64,
) -> io::Result<String> {
    let mut hash = Sha256::new();
    // Odd, so that it is never stuck at zero.
    let mut state = seed | 1;
    let mut chunk = vec![0; CHUNK];
    let mut left = length;
    while left > 0 {
        for word in chunk.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        let now = &chunk[..left.min(CHUNK)];
        hash.update(now);
        to.write_all(now).await?;
        left -= now.len();
    }
    to.shutdown().await?;
    Ok(digest(hash))
}

/// Reads until the other side closes its direction: how much, and its hash.
pub async fn receive(from: &mut (impl AsyncRead + Unpin)) -> io::Result<(usize, String)> {
    let mut hash = Sha256::new();
    let mut length = 0;
    let mut chunk = vec![0; CHUNK];
    loop {
        match from.read(&mut chunk).await? {
            0 => return Ok((length, digest(hash))),
            n => {
                hash.update(&chunk[..n]);
                length += n;
            }
        }
    }
}

fn digest(hash: Sha256) -> String {
    hash.finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Everything until the other side closes its direction; a reset is no end.
pub async fn read_all(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    from.read_to_end(&mut all).await?;
    Ok(all)
}
