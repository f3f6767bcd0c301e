//! How large the tar in a layer may be.
//!
//! A blob of some kilobytes can decode to terabytes: time, entries, and for zstd disk, since a frame that is longer than a
//! span is written once more. So the tar is limited twice: as such, and by what its blob is worth.

use std::fmt;

/// What the ratio is not applied to, in bytes of tar: a layer of this size does no harm, and many a small one is a file of
/// zeros (1,000 times what gzip makes of it).
pub const RATIO_FROM: u64 = 1 << 30;

/// What layers may come to when they are decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerLimits {
    /// The longest tar, in bytes.
    pub tar_bytes: u64,
    /// The most bytes of tar for each byte of the blob, in layers whose tar is longer than [`RATIO_FROM`].
    pub ratio: u64,
}

impl Default for LayerLimits {
    /// 64 GiB, some five times what the largest layers in use have (model weights, CUDA); and 200, where layers of programs
    /// and data reach 20.
    fn default() -> Self {
        Self { tar_bytes: 64 << 30, ratio: 200 }
    }
}

impl LayerLimits {
    /// What holds for the layer in a blob of this length.
    #[must_use]
    pub fn of_blob(&self, blob_bytes: u64) -> TarLimit {
        let by_ratio = self.ratio.saturating_mul(blob_bytes).max(RATIO_FROM);
        match by_ratio < self.tar_bytes {
            true => TarLimit { bytes: by_ratio, reason: TarLimitReason::Ratio(self.ratio) },
            false => TarLimit { bytes: self.tar_bytes, reason: TarLimitReason::Size },
        }
    }
}

/// How long the tar of one layer may be, and which setting says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TarLimit {
    bytes: u64,
    reason: TarLimitReason,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TarLimitReason {
    Size,
    Ratio(u64),
}

impl TarLimit {
    /// The longest tar, in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Default for TarLimit {
    fn default() -> Self {
        LayerLimits::default().of_blob(u64::MAX)
    }
}

/// Names the key in the configuration, too: whoever trusts the image can raise it.
impl fmt::Display for TarLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.bytes)?;
        match self.reason {
            TarLimitReason::Size => f.write_str(" (`layer-size-mib` in `[limits]` of the configuration)"),
            TarLimitReason::Ratio(ratio) if self.bytes == RATIO_FROM => write!(
                f,
                ", which is as far as a tar may go that is more than {ratio} times its blob (`layer-ratio` in `[limits]` of \
                 the configuration)"
            ),
            TarLimitReason::Ratio(ratio) => {
                write!(f, ", {ratio} times its blob (`layer-ratio` in `[limits]` of the configuration)")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lower_limit_holds_and_small_tars_have_no_ratio() {
        let limits = LayerLimits { tar_bytes: 64 << 30, ratio: 200 };
        for (blob, bytes, reason) in [
            (0, RATIO_FROM, TarLimitReason::Ratio(200)),
            (1 << 20, RATIO_FROM, TarLimitReason::Ratio(200)),
            (6 << 20, 200 * (6 << 20), TarLimitReason::Ratio(200)),
            (64 << 30, 64 << 30, TarLimitReason::Size),
            (u64::MAX, 64 << 30, TarLimitReason::Size),
        ] {
            assert_eq!(limits.of_blob(blob), TarLimit { bytes, reason }, "{blob}");
        }
        // Below what the ratio begins at, the size is all that counts.
        let small = LayerLimits { tar_bytes: 1 << 20, ratio: 1 };
        assert_eq!(small.of_blob(0), TarLimit { bytes: 1 << 20, reason: TarLimitReason::Size });
    }
}
