//! What a wrong clock looks like from here.
//!
//! A certificate that is "expired" or "not valid yet" is most often a good one, seen
//! by a machine whose clock is wrong. So whoever reports such a failure asks about
//! the clock, and says by how much it is off.

use rustls::{AlertDescription, CertificateError};
use std::io;
use std::time::{Duration, SystemTime};

/// duet-control lets certificates begin this long before they are signed, so clocks
/// that are behind by less do no harm.
pub const BACKDATE: Duration = Duration::from_secs(5 * 60);

/// A handshake's failure, and what a clock may have to do with it.
pub fn explain_handshake(failure: &io::Error) -> String {
    let hint = failure
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>())
        .and_then(of_tls);
    match hint {
        Some(hint) => format!("{failure}: {hint}"),
        None => failure.to_string(),
    }
}

fn of_tls(error: &rustls::Error) -> Option<String> {
    let off = |between: u64| {
        format!("is the clock right? if the peer's is, this one is off by {between} s or more")
    };
    match error {
        rustls::Error::InvalidCertificate(CertificateError::NotValidYetContext {
            time,
            not_before,
        }) => Some(format!(
            "the peer's certificate is not valid yet: {}",
            off(not_before.as_secs().saturating_sub(time.as_secs()))
        )),
        rustls::Error::InvalidCertificate(CertificateError::ExpiredContext { time, not_after }) => {
            Some(format!(
                "the peer's certificate is not valid any more: {}",
                off(time.as_secs().saturating_sub(not_after.as_secs()))
            ))
        }
        rustls::Error::AlertReceived(AlertDescription::CertificateExpired) => Some(
            "to the peer, this proxy's certificate is out of date: are both clocks right?"
                .to_owned(),
        ),
        _ => None,
    }
}

/// How far the clock is from duet-control's, if that is more than certificates allow
/// for. `not_before` is that of a certificate which was signed a moment ago.
pub fn skew(not_before: SystemTime, now: SystemTime) -> Option<String> {
    let signed = not_before + BACKDATE;
    let (off, direction) = match signed.duration_since(now) {
        Ok(behind) => (behind, "behind"),
        Err(ahead) => (ahead.duration(), "ahead of"),
    };
    (off > BACKDATE).then(|| {
        let state = match now < not_before {
            true => "the certificate is not valid yet",
            false => "certificates end early here",
        };
        format!(
            "{state}: is the clock right? it is off by about {} s, {direction} duet-control's",
            off.as_secs()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::pki_types::UnixTime;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn small_differences_are_not_worth_a_word() {
        let signed = SystemTime::now();
        let not_before = signed - BACKDATE;
        for now in [signed, signed + 4 * MINUTE, signed - 4 * MINUTE] {
            assert_eq!(skew(not_before, now), None);
        }
    }

    #[test]
    fn larger_ones_are_named() {
        let signed = SystemTime::now();
        let not_before = signed - BACKDATE;
        let behind = skew(not_before, signed - 10 * MINUTE).unwrap();
        assert!(
            behind.contains("not valid yet") && behind.contains("about 600 s, behind"),
            "{behind}"
        );
        let ahead = skew(not_before, signed + 10 * MINUTE).unwrap();
        assert!(ahead.contains("about 600 s, ahead of"), "{ahead}");
    }

    #[test]
    fn a_failed_handshake_asks_about_the_clock() {
        let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let explained = |reason| {
            let error = rustls::Error::InvalidCertificate(reason);
            explain_handshake(&io::Error::new(io::ErrorKind::InvalidData, error))
        };
        let early = explained(CertificateError::NotValidYetContext {
            time: at(1000),
            not_before: at(1412),
        });
        assert!(
            early.contains("not valid yet: is the clock right?") && early.contains("412 s"),
            "{early}"
        );
        let late = explained(CertificateError::ExpiredContext {
            time: at(1000),
            not_after: at(900),
        });
        assert!(
            late.contains("any more") && late.contains("100 s"),
            "{late}"
        );
        let other = explained(CertificateError::UnknownIssuer);
        assert!(!other.contains("clock"), "{other}");
    }
}
