//! Positions in the write-ahead log.

use std::fmt;
use std::str::FromStr;

/// A byte position in the WAL. Prints as Postgres does (`0/3000148`, no zero padding); the wire form is the decimal number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

impl Lsn {
    /// "Unknown" in every format Patroni writes.
    pub const ZERO: Lsn = Lsn(0);
    /// Bytes by which `self` is ahead of `other`, 0 when it is not.
    pub fn ahead_of(self, other: Lsn) -> u64 {
        self.0.saturating_sub(other.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

/// The text was not of the form `X/X`.
#[derive(Debug, PartialEq, Eq)]
pub struct BadLsn;

impl FromStr for Lsn {
    type Err = BadLsn;
    fn from_str(s: &str) -> Result<Self, BadLsn> {
        let (hi, lo) = s.trim().split_once('/').ok_or(BadLsn)?;
        let hi = u32::from_str_radix(hi, 16).map_err(|_| BadLsn)?;
        let lo = u32::from_str_radix(lo, 16).map_err(|_| BadLsn)?;
        Ok(Lsn((u64::from(hi) << 32) | u64::from(lo)))
    }
}

/// A timeline number. 0 means "unknown".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timeline(pub u32);

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_lsn_prints_and_parses_as_postgres_does() {
        assert_eq!(Lsn(0x3000148).to_string(), "0/3000148");
        assert_eq!("1A/FF".parse(), Ok(Lsn((0x1A << 32) | 0xFF)));
        assert_eq!("nonsense".parse::<Lsn>(), Err(BadLsn));
    }
}
