//! Limits on the size of a layer's tar.
//!
//! A blob of a few kilobytes can decode to terabytes, which costs time, entries and, for zstd, disk space: a frame longer than a
//! span is written a second time. So the tar has two limits: an absolute one, and a ratio to the size of its blob.

use std::fmt;

/// The length of a tar in bytes up to which the ratio does not apply. A layer of this size is harmless, and some small layers
/// are a file of zeros, which gzip compresses by a factor of a thousand.
pub const RATIO_FROM: u64 = 1 << 30;

/// Limits on the size of decoded layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerLimits {
    /// The longest tar, in bytes.
    pub tar_bytes: u64,
    /// The most bytes of tar per byte of blob, for tars longer than [`RATIO_FROM`].
    pub ratio: u64,
}

impl Default for LayerLimits {
    /// 64 GiB, about five times the size of the largest layers in use (model weights, CUDA), and a ratio of 200, ten times
    /// the ratio that layers of programs and data reach.
    fn default() -> Self {
        Self { tar_bytes: 64 << 30, ratio: 200 }
    }
}

impl LayerLimits {
    /// The limit for the layer in a blob of this length.
    #[must_use]
    pub fn of_blob(&self, blob_bytes: u64) -> TarLimit {
        let by_ratio = self.ratio.saturating_mul(blob_bytes).max(RATIO_FROM);
        match by_ratio < self.tar_bytes {
            true => TarLimit { bytes: by_ratio, reason: TarLimitReason::Ratio(self.ratio) },
            false => TarLimit { bytes: self.tar_bytes, reason: TarLimitReason::Size },
        }
    }
}

/// The limit for the tar of one layer, and the setting that it comes from.
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

/// Includes the configuration key, so that a user who trusts the image can raise it.
impl fmt::Display for TarLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.bytes)?;
        match self.reason {
            TarLimitReason::Size => f.write_str(" (`layer-size-mib` in `[limits]` of the configuration)"),
            TarLimitReason::Ratio(ratio) if self.bytes == RATIO_FROM => write!(
                f,
                ", the limit for a tar of more than {ratio} times the size of its blob (`layer-ratio` in `[limits]` of the \
                 configuration)"
            ),
            TarLimitReason::Ratio(ratio) => {
                write!(
                    f,
                    ", {ratio} times the size of its blob (`layer-ratio` in `[limits]` of the configuration)"
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lower_limit_applies_and_small_tars_have_no_ratio() {
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
        // Below `RATIO_FROM`, only the size counts.
        let small = LayerLimits { tar_bytes: 1 << 20, ratio: 1 };
        assert_eq!(small.of_blob(0), TarLimit { bytes: 1 << 20, reason: TarLimitReason::Size });
    }
}
