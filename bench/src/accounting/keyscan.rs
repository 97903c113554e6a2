//! Which private keys a process's memory gives away.
//!
//! What an attacker gains who can read a proxy's memory is a question of fact:
//! every 32-byte window in writable memory is tried as a P-256 private key `d`,
//! and it is one if `d·G` is the public key in a certificate that a workload
//! really presents. No symbol table, no knowledge of any library's layout; both
//! byte orders, because TLS libraries keep scalars as little-endian limbs and
//! PKCS#8 keeps them big-endian.
//!
//! Multiplying costs microseconds, so windows that no random scalar would
//! produce (zeros, pointers, text, anything far from half its bits set) are
//! passed over first. The filters together miss a real key less than once in a
//! thousand.

use super::{Error, lacks, read};
use p256::elliptic_curve::group::Group;
use p256::elliptic_curve::ops::Reduce;
use p256::elliptic_curve::point::{AffineCoordinates, BatchNormalize};
use p256::{FieldBytes, ProjectivePoint, Scalar};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Public keys to look for the private halves of, by the owner's name.
#[derive(Clone, Debug, Default)]
pub struct KnownKeys {
    by_x: HashMap<[u8; 32], String>,
}

/// An identity and its certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certified {
    /// `spiffe://…`
    pub identity: String,
    /// PEM, the leaf first.
    pub certificate: String,
}

impl KnownKeys {
    /// The keys of these certificates.
    pub fn of(certified: &[Certified]) -> Self {
        let mut known = Self::default();
        for one in certified {
            known.add_certificate(&one.identity, &one.certificate);
        }
        known
    }

    /// Adds the key of the first certificate in `pem`. `false` if it holds no
    /// certificate with a P-256 key.
    pub fn add_certificate(&mut self, owner: &str, pem: &str) -> bool {
        let Some(x) = x509_parser::pem::Pem::iter_from_buffer(pem.as_bytes())
            .filter_map(Result::ok)
            .find(|block| block.label == "CERTIFICATE")
            .and_then(|block| {
                let certificate = block.parse_x509().ok()?;
                x_of(&certificate.public_key().subject_public_key.data)
            })
        else {
            return false;
        };
        self.by_x.insert(x, owner.to_owned());
        true
    }

    /// Adds a public key given as an uncompressed SEC 1 point.
    pub fn add_point(&mut self, owner: &str, sec1: &[u8]) -> bool {
        let x = x_of(sec1);
        if let Some(x) = x {
            self.by_x.insert(x, owner.to_owned());
        }
        x.is_some()
    }

    /// Takes over all of `other`'s.
    pub fn extend(&mut self, other: Self) {
        self.by_x.extend(other.by_x);
    }

    /// Distinct public keys known.
    pub fn len(&self) -> usize {
        self.by_x.len()
    }

    /// Whether there is nothing to look for.
    pub fn is_empty(&self) -> bool {
        self.by_x.is_empty()
    }
}

fn x_of(sec1: &[u8]) -> Option<[u8; 32]> {
    match sec1 {
        [4, rest @ ..] if rest.len() == 64 => rest[..32].try_into().ok(),
        _ => None,
    }
}

/// What one process's memory gave away.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct KeyScan {
    /// Owners of the distinct keys found, and how many copies of each.
    pub found: BTreeMap<String, u64>,
    /// Writable memory read, bytes.
    pub bytes: u64,
    /// Distinct windows that were multiplied out.
    pub tried: u64,
    /// False if time ran out: then `found` is a lower bound.
    pub complete: bool,
    /// How long it took.
    pub took: Duration,
}

/// Reads all writable private memory of `pid` and tries it against `known`,
/// for at most `limit`, on two threads.
pub fn scan_process(pid: u32, known: &KnownKeys, limit: Duration) -> Result<KeyScan, Error> {
    let started = Instant::now();
    let deadline = started + limit;
    let (windows, bytes) = candidates(pid)?;
    let distinct: Vec<[u8; 32]> = windows.keys().copied().collect();
    let middle = distinct.len() / 2;
    let (left, right) = distinct.split_at(middle);
    let (a, b) = std::thread::scope(|scope| {
        let left = scope.spawn(|| multiply(left, known, deadline));
        let right = multiply(right, known, deadline);
        (left.join().expect("multiplying does not panic"), right)
    });
    let mut found = BTreeMap::new();
    for (window, owner) in a.hits.into_iter().chain(b.hits) {
        *found.entry(owner).or_default() += windows.get(&window).copied().unwrap_or(1);
    }
    Ok(KeyScan {
        found,
        bytes,
        tried: a.tried + b.tried,
        complete: a.complete && b.complete,
        took: started.elapsed(),
    })
}

/// A region of `/proc/<pid>/maps` that is readable, writable and private.
fn writable(line: &str) -> Option<(u64, u64)> {
    let mut fields = line.split_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let permissions = fields.next()?;
    let start = u64::from_str_radix(start, 16).ok()?;
    let end = u64::from_str_radix(end, 16).ok()?;
    (permissions.starts_with("rw") && permissions.ends_with('p')).then_some((start, end))
}

const CHUNK: usize = 1 << 20;
const PAGE: usize = 4096;

/// Every window worth multiplying, with the number of times it was seen.
fn candidates(pid: u32) -> Result<(HashMap<[u8; 32], u64>, u64), Error> {
    let maps = read(format!("/proc/{pid}/maps"))?;
    let path = PathBuf::from(format!("/proc/{pid}/mem"));
    let memory = File::open(&path).map_err(|source| Error::Read {
        path: path.clone(),
        source,
    })?;
    let mut windows = HashMap::new();
    let mut bytes = 0;
    // Chunks overlap by a window and a PKCS#8 prefix, so that nothing falls
    // between two of them; what is seen twice that way is noticed by its address.
    let overlap = 64;
    let mut buffer = vec![0u8; CHUNK + overlap];
    for (start, end) in maps.lines().filter_map(writable) {
        let mut at = start;
        while at < end {
            let want = usize::try_from(end - at)
                .unwrap_or(CHUNK)
                .min(CHUNK + overlap);
            let fresh = want.min(CHUNK);
            fill(&memory, at, &mut buffer[..want]);
            collect(&buffer[..want], fresh, &mut windows);
            bytes += fresh as u64;
            at += fresh as u64;
        }
    }
    if bytes == 0 {
        return Err(lacks(path, "writable memory")());
    }
    Ok((windows, bytes))
}

/// Pages that cannot be read (guards, device memory) count as zeros.
fn fill(memory: &File, at: u64, buffer: &mut [u8]) {
    if memory.read_exact_at(buffer, at).is_ok() {
        return;
    }
    for (i, page) in buffer.chunks_mut(PAGE).enumerate() {
        if memory.read_exact_at(page, at + (i * PAGE) as u64).is_err() {
            page.fill(0);
        }
    }
}

/// ECPrivateKey in DER: INTEGER 1, then OCTET STRING of 32 bytes (RFC 5915).
const EC_PRIVATE_KEY: [u8; 5] = [0x02, 0x01, 0x01, 0x04, 0x20];

/// Takes windows that begin in the first `fresh` bytes of `memory`.
fn collect(memory: &[u8], fresh: usize, windows: &mut HashMap<[u8; 32], u64>) {
    let mut take = |window: &[u8]| {
        if let Ok(window) = <[u8; 32]>::try_from(window)
            && could_be_random(&window)
        {
            *windows.entry(window).or_default() += 1;
        }
    };
    for at in (0..fresh).step_by(8) {
        // A zero word ends the matter for four windows; most memory is that.
        if memory.get(at..at + 8).is_some_and(|word| word != [0; 8])
            && let Some(window) = memory.get(at..at + 32)
        {
            take(window);
        }
    }
    for at in memory
        .windows(EC_PRIVATE_KEY.len())
        .take(fresh)
        .enumerate()
        .filter(|(_, bytes)| *bytes == EC_PRIVATE_KEY)
        .map(|(at, _)| at + EC_PRIVATE_KEY.len())
    {
        if at % 8 != 0
            && let Some(window) = memory.get(at..at + 32)
        {
            take(window);
        }
    }
}

/// Whether 32 random bytes might look like this.
fn could_be_random(window: &[u8; 32]) -> bool {
    let mut ones = 0;
    for word in window.chunks_exact(8) {
        let word = u64::from_le_bytes(word.try_into().unwrap_or_default());
        // A pointer or a small number, in either byte order.
        if matches!(word >> 48, 0 | 0xffff) || matches!(word & 0xffff, 0 | 0xffff) {
            return false;
        }
        ones += word.count_ones();
    }
    // Half of 256, give or take 4.5 standard deviations of 8.
    if !(92..=164).contains(&ones) || window.is_ascii() {
        return false;
    }
    let mut seen = [0u64; 4];
    for byte in window {
        seen[usize::from(byte >> 6)] |= 1 << (byte & 63);
    }
    // 32 random bytes repeat each other once or twice, never ten times.
    seen.iter().map(|set| set.count_ones()).sum::<u32>() >= 23
}

struct Multiplied {
    hits: BTreeSet<([u8; 32], String)>,
    tried: u64,
    complete: bool,
}

/// One inversion serves a whole batch.
const BATCH: usize = 512;

fn multiply(windows: &[[u8; 32]], known: &KnownKeys, deadline: Instant) -> Multiplied {
    let mut result = Multiplied {
        hits: BTreeSet::new(),
        tried: 0,
        complete: true,
    };
    let mut done = HashSet::new();
    for batch in windows.chunks(BATCH) {
        if Instant::now() >= deadline {
            result.complete = false;
            break;
        }
        let mut origins = Vec::with_capacity(2 * batch.len());
        let mut points = Vec::with_capacity(2 * batch.len());
        for window in batch {
            let mut reversed = *window;
            reversed.reverse();
            for scalar in [*window, reversed] {
                let point = ProjectivePoint::mul_by_generator(
                    &<Scalar as Reduce<FieldBytes>>::reduce(&scalar.into()),
                );
                if !bool::from(point.is_identity()) {
                    origins.push(*window);
                    points.push(point);
                }
            }
        }
        result.tried += batch.len() as u64;
        let affine = <ProjectivePoint as BatchNormalize<[_]>>::batch_normalize(&points[..]);
        for (window, point) in origins.into_iter().zip(affine) {
            if let Some(owner) = known.by_x.get::<[u8; 32]>(&point.x().into())
                && done.insert(window)
            {
                result.hits.insert((window, owner.clone()));
            }
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Write};
    use std::process::{Child, Command, Stdio};

    /// A child that does nothing but hold bytes in its memory: `cat` keeps what
    /// it copies in its buffer.
    fn holder(bytes: &[u8]) -> Child {
        let mut child = Command::new("cat")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("cat runs");
        let stdin = child.stdin.as_mut().expect("piped");
        stdin.write_all(bytes).expect("cat reads");
        stdin.write_all(b"\nend\n").expect("cat reads");
        let mut out = BufReader::new(child.stdout.take().expect("piped"));
        let mut line = Vec::new();
        while !line.ends_with(b"end\n") {
            assert_ne!(out.read_until(b'\n', &mut line).expect("cat writes"), 0);
        }
        child
    }

    fn key(seed: u8) -> ([u8; 32], KnownKeys) {
        use sha2::Digest;
        let secret: [u8; 32] = sha2::Sha256::digest([seed; 7]).into();
        let public = p256::SecretKey::from_slice(&secret)
            .expect("a scalar")
            .public_key();
        let mut known = KnownKeys::default();
        assert!(known.add_point(&format!("key-{seed}"), &public.to_sec1_bytes()));
        (secret, known)
    }

    #[test]
    fn finds_the_key_that_is_there_and_no_other() {
        let (present, mut known) = key(1);
        let (_, absent) = key(2);
        known.extend(absent);
        let mut child = holder(&present);
        let scan = scan_process(child.id(), &known, Duration::from_secs(60)).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(scan.complete);
        assert_eq!(scan.found.keys().collect::<Vec<_>>(), ["key-1"]);
    }

    #[test]
    fn byte_order_does_not_hide_a_key() {
        let (mut secret, known) = key(3);
        secret.reverse();
        let mut child = holder(&secret);
        let scan = scan_process(child.id(), &known, Duration::from_secs(60)).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(scan.found.len(), 1);
    }

    #[test]
    fn der_is_found_at_odd_offsets() {
        let (secret, known) = key(4);
        let mut memory = vec![0x30, 0x77, 0x55];
        memory.extend(EC_PRIVATE_KEY);
        memory.push(0);
        memory.pop();
        memory.extend(secret);
        memory.extend([0xa0; 30]);
        memory.insert(0, 0x31);
        let mut windows = HashMap::new();
        let fresh = memory.len();
        collect(&memory, fresh, &mut windows);
        assert!(windows.contains_key(&secret));
        let all: Vec<_> = windows.keys().copied().collect();
        let result = multiply(&all, &known, Instant::now() + Duration::from_secs(60));
        assert_eq!(result.hits.len(), 1);
    }

    #[test]
    fn random_passes_and_everyday_memory_does_not() {
        use rand::{RngExt, SeedableRng};
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(5);
        let passed = (0..20_000)
            .filter(|_| could_be_random(&rng.random::<[u8; 32]>()))
            .count();
        assert!(passed > 19_960, "{passed}");
        assert!(!could_be_random(b"GET /bytes/1024 HTTP/1.1\r\nhost: "));
        let mut pointers = [0u8; 32];
        for word in pointers.chunks_exact_mut(8) {
            word.copy_from_slice(&0x0000_7f3a_91c4_e5d8u64.to_le_bytes());
        }
        assert!(!could_be_random(&pointers));
    }

    #[test]
    fn only_writable_private_memory_counts() {
        assert_eq!(
            writable("7f00-7f20 rw-p 00000000 00:00 0 [heap]"),
            Some((0x7f00, 0x7f20))
        );
        assert_eq!(writable("7f00-7f20 r-xp 00000000 08:01 1 /bin/x"), None);
        assert_eq!(writable("7f00-7f20 rw-s 00000000 00:05 2 /dev/shm"), None);
    }
}
