//! The key scan's own control: a process that is known to hold a key.
//!
//! A scan that finds nothing proves nothing unless it finds what is there. The
//! control makes a key as the proxies make theirs, says its public half, and
//! holds it while it is searched.

use super::{KnownKeys, scan_process};
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

/// The hidden command whose process holds the key.
pub const HOLD_KEY: &str = "hold-key";

/// Whether the scan finds the key of a process that is known to hold one, and
/// no other.
pub fn scan_control(others: &KnownKeys, limit: Duration) -> Result<bool, String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut child = Command::new(program)
        .arg(HOLD_KEY)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| error.to_string())?;
    let found = (|| {
        let stdout = child.stdout.take().ok_or("no pipe")?;
        let mut line = String::new();
        BufReader::new(stdout)
            .read_line(&mut line)
            .map_err(|error| error.to_string())?;
        let point = hex(line.trim()).ok_or("no public key was printed")?;
        let mut known = others.clone();
        if !known.add_point("control", &point) {
            return Err("what was printed is no P-256 key".to_owned());
        }
        let scan = scan_process(child.id(), &known, limit).map_err(|error| error.to_string())?;
        Ok(scan.found.keys().eq(["control"]))
    })();
    let _ = child.kill();
    let _ = child.wait();
    found
}

fn hex(text: &str) -> Option<Vec<u8>> {
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok())
        .collect()
}

/// Makes a key as the proxies make theirs, prints its public half, and holds it
/// until standard input closes.
pub fn hold_key() -> Result<(), String> {
    let pair = rcgen::KeyPair::generate().map_err(|error| error.to_string())?;
    let line: String = pair
        .public_key_raw()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    println!("{line}");
    std::io::stdout()
        .flush()
        .map_err(|error| error.to_string())?;
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    drop(pair);
    Ok(())
}
