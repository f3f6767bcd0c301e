//! Content digests: one type for any blob, and one for each role in which they must not be confused.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A SHA-256 content digest, `sha256:` and 64 lower-case hex digits in text (image-spec, descriptor.md, "Digests").
///
/// SHA-512 is registered there too, but no registry or builder writes it; it is refused by name.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

/// Why a text is not a digest that this program takes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// There is no `ALGORITHM:` in front.
    #[error("digest `{0}` has no algorithm (wanted sha256:HEX)")]
    NoAlgorithm(String),
    /// A registered or unknown algorithm other than SHA-256.
    #[error("digest algorithm `{0}` is not supported (only sha256)")]
    Algorithm(String),
    /// Not 64 lower-case hex digits.
    #[error("digest `{0}` does not have 64 lower-case hex digits")]
    Hex(String),
}

impl Digest {
    /// Wraps a finished SHA-256 value.
    #[must_use]
    pub fn new(sha256: [u8; 32]) -> Self {
        Self(sha256)
    }

    /// The digest of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        use sha2::Digest as _;
        Self(sha2::Sha256::digest(bytes).into())
    }

    /// The 32 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The 64 hex digits without the algorithm: a file's name in `blobs/sha256/`.
    #[must_use]
    pub fn hex(&self) -> String {
        use fmt::Write as _;
        self.0.iter().fold(String::with_capacity(64), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let (algorithm, hex) =
            text.split_once(':').ok_or_else(|| DigestError::NoAlgorithm(text.to_owned()))?;
        if algorithm != "sha256" {
            return Err(DigestError::Algorithm(algorithm.to_owned()));
        }
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            b'a'..=b'f' => Some(byte - b'a' + 10),
            _ => None,
        };
        let bad = || DigestError::Hex(text.to_owned());
        if hex.len() != 64 {
            return Err(bad());
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
            *byte = digit(pair[0]).ok_or_else(bad)? << 4 | digit(pair[1]).ok_or_else(bad)?;
        }
        Ok(Self(bytes))
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Declares a digest with a role of its own, so that one is never passed where another is meant.
macro_rules! digest_role {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Digest);

        impl $name {
            /// Gives a digest this role.
            #[must_use]
            pub fn new(digest: Digest) -> Self {
                Self(digest)
            }

            /// The digest without its role.
            #[must_use]
            pub fn digest(&self) -> Digest {
                self.0
            }

            /// The 64 hex digits without the algorithm.
            #[must_use]
            pub fn hex(&self) -> String {
                self.0.hex()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl FromStr for $name {
            type Err = DigestError;

            fn from_str(text: &str) -> Result<Self, DigestError> {
                text.parse().map(Self)
            }
        }
    };
}

digest_role! {
    /// Digest of a manifest (or of an index of manifests): what stands behind `@` in a reference.
    ManifestDigest
}
digest_role! {
    /// Digest of a layer's blob as served, compressed or not.
    LayerDigest
}
digest_role! {
    /// Digest of a layer's tar, uncompressed (image-spec, config.md, `rootfs.diff_ids`).
    DiffId
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn text_form_round_trips() {
        assert_eq!(Digest::of(b"").to_string(), EMPTY);
        assert_eq!(EMPTY.parse::<Digest>().unwrap(), Digest::of(b""));
    }

    #[test]
    fn each_way_to_be_wrong_is_named() {
        assert!(matches!("abc".parse::<Digest>(), Err(DigestError::NoAlgorithm(_))));
        assert!(matches!("sha512:ab".parse::<Digest>(), Err(DigestError::Algorithm(a)) if a == "sha512"));
        assert!(matches!("sha256:ab".parse::<Digest>(), Err(DigestError::Hex(_))));
        assert!(matches!(EMPTY.to_uppercase().parse::<Digest>(), Err(DigestError::Algorithm(_))));
        assert!(matches!(
            EMPTY.replace('e', "E").parse::<Digest>(),
            Err(DigestError::Hex(_) | DigestError::Algorithm(_))
        ));
        assert!(matches!(EMPTY.replace('e', "g").parse::<Digest>(), Err(DigestError::Hex(_))));
    }
}
