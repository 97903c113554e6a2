//! A range of addresses, as in `10.0.0.0/8`.

use std::net::IpAddr;
use std::str::FromStr;

/// A CIDR block (RFC 4632 §3.1, RFC 4291 §2.3). Bits behind the prefix do not matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    ipv4: bool,
    bits: u128,
    mask: u128,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a block of addresses: write it as 10.0.0.0/8, fd00::/8, or 10.0.0.1/32 for one"
)]
pub struct InvalidNetwork(String);

// === impl Network ===

impl Network {
    /// Addresses of the other family are never in it. `ip` is canonical: an
    /// IPv4-mapped one would count as IPv6.
    pub fn contains(&self, ip: IpAddr) -> bool {
        self.ipv4 == ip.is_ipv4() && to_bits(ip) & self.mask == self.bits
    }
}

impl FromStr for Network {
    type Err = InvalidNetwork;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (address, length) = text.split_once('/')?;
            let address: IpAddr = address.parse().ok()?;
            // u8's own parser would take "+8" and "008".
            let digits = length.bytes().all(|byte| byte.is_ascii_digit());
            let padded = length.len() > 1 && length.starts_with('0');
            let length: u32 = length.parse().ok().filter(|_| digits && !padded)?;
            // ::ffff:10.0.0.0/104 is 10.0.0.0/8.
            let canonical = address.to_canonical();
            let length = if canonical.is_ipv4() && address.is_ipv6() {
                length.checked_sub(96)?
            } else {
                length
            };
            let width = if canonical.is_ipv4() { 32 } else { 128 };
            let host = width - Some(length).filter(|length| *length <= width)?;
            let mask = u128::MAX.checked_shl(host).unwrap_or(0);
            Some(Self {
                ipv4: canonical.is_ipv4(),
                bits: to_bits(canonical) & mask,
                mask,
            })
        };
        parse().ok_or_else(|| InvalidNetwork(text.to_owned()))
    }
}

fn to_bits(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(v4) => v4.to_bits().into(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    fn network(text: &str) -> Network {
        text.parse().unwrap_or_else(|error| panic!("{error}"))
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn blocks_contain_their_own() {
        assert!(network("10.0.0.0/8").contains(ip("10.255.0.1")));
        assert!(!network("10.0.0.0/8").contains(ip("11.0.0.1")));
        assert!(network("10.1.2.3/16").contains(ip("10.1.255.255")));
        assert!(network("10.1.2.3/32").contains(ip("10.1.2.3")));
        assert!(!network("10.1.2.3/32").contains(ip("10.1.2.2")));
        assert!(network("fd00::/8").contains(ip("fdff::1")));
        assert!(!network("fd00::/8").contains(ip("fe80::1")));
        assert!(network("::ffff:10.0.0.0/104").contains(ip("10.1.1.1")));
    }

    #[test]
    fn any_address_is_of_one_family() {
        assert!(network("0.0.0.0/0").contains(ip("1.2.3.4")));
        assert!(!network("0.0.0.0/0").contains(ip("::1")));
        assert!(network("::/0").contains(ip("::1")));
        assert!(!network("::/0").contains(ip("1.2.3.4")));
    }

    #[test]
    fn what_is_no_block_is_refused() {
        for wrong in [
            "",
            "/",
            "10.0.0.1",
            "10.0.0.0/33",
            "10.0.0.0/-1",
            "10.0.0.0/+8",
            "10.0.0.0/08",
            "10.0.0/8",
            "010.0.0.0/8",
            "10.0.0.0/8/8",
            "fd00::/129",
            "fe80::1%eth0/64",
            "::ffff:10.0.0.0/95",
            "10.0.0.0/ 8",
            "10.0.0.0/",
        ] {
            assert!(wrong.parse::<Network>().is_err(), "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn a_block_has_what_shares_its_prefix(a: u32, b: u32, length in 0..=32u32) {
            let block = network(&format!("{}/{length}", Ipv4Addr::from_bits(a)));
            let same = (a ^ b).leading_zeros() >= length;
            prop_assert_eq!(block.contains(Ipv4Addr::from_bits(b).into()), same);
        }

        #[test]
        fn v6_too(a in 1u128.., b: u128, length in 0..=128u32) {
            let a = a | 1 << 127;
            let block = network(&format!("{}/{length}", Ipv6Addr::from_bits(a)));
            let same = (a ^ b).leading_zeros() >= length;
            prop_assert_eq!(block.contains(Ipv6Addr::from_bits(b).into()), same);
        }

        #[test]
        fn any_text_is_survived(text in ".*") {
            let _ = text.parse::<Network>();
        }
    }
}
