//! Content digests: one type for any blob, and one type for each role that must not be confused with another.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::ErrorCode;

/// A SHA-256 content digest; its text form is `sha256:` and 64 lower-case hex digits (image-spec, descriptor.md, "Digests").
///
/// The specification also registers SHA-512. No registry or builder writes it, so it is not supported.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

/// The reason why a text is not a supported digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// The text does not start with `ALGORITHM:`.
    #[error("digest `{0}` has no algorithm (expected sha256:HEX)")]
    NoAlgorithm(String),
    /// The algorithm is not SHA-256.
    #[error("digest algorithm `{0}` is not supported (only sha256)")]
    Algorithm(String),
    /// The value is not 64 lower-case hex digits.
    #[error("digest `{0}` does not have 64 lower-case hex digits")]
    Hex(String),
}

impl DigestError {
    /// The stable code of this error.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::NoAlgorithm(_) | Self::Algorithm(_) | Self::Hex(_) => ErrorCode::Reference,
        }
    }
}

impl Digest {
    /// Parses the 64 hex digits of a digest, without its algorithm, as in file names.
    #[must_use]
    pub fn from_hex(hex: &str) -> Option<Self> {
        format!("sha256:{hex}").parse().ok()
    }

    /// Wraps a SHA-256 value.
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

    /// The 64 hex digits without the algorithm: the name of the blob's file in `blobs/sha256/`.
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

/// Declares a digest type for one role, so that the compiler refuses a digest in another role.
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
    /// The digest of a manifest or of an index of manifests: the digest after `@` in a reference.
    ManifestDigest
}
digest_role! {
    /// The digest of a layer's blob as served, compressed or not.
    LayerDigest
}
digest_role! {
    /// The digest of a layer's uncompressed tar (image-spec, config.md, `rootfs.diff_ids`).
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
    fn each_malformed_digest_has_its_own_error() {
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
