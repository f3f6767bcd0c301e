//! Names what depends on the layers of an image alone.

use super::{Digest, LayerDigest};

/// The key of everything that is a function of an image's layers: images of the same layers share it.
///
/// The SHA-256 digest of the layers' digests, lowest first, one on each line. Like a chain ID of the image specification, but of
/// blobs: these need not be decoded, and cannot be invented.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TreeKey(Digest);

impl TreeKey {
    /// Returns the key of these layers, lowest first.
    #[must_use]
    pub fn of(layers: impl IntoIterator<Item = LayerDigest>) -> Self {
        let lines: String = layers.into_iter().map(|layer| format!("{}\n", layer.digest())).collect();
        Self(Digest::of(lines.as_bytes()))
    }

    /// The 64 hex digits.
    #[must_use]
    pub fn hex(&self) -> String {
        self.0.hex()
    }

    /// Parses the 64 hex digits.
    #[must_use]
    pub fn from_hex(hex: &str) -> Option<Self> {
        Digest::from_hex(hex).map(Self)
    }

    /// The UUID of a filesystem with this tree (RFC 9562, version 8).
    #[must_use]
    pub fn uuid(&self) -> [u8; 16] {
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&self.0.as_bytes()[..16]);
        uuid[6] = uuid[6] & 0x0f | 0x80;
        uuid[8] = uuid[8] & 0x3f | 0x80;
        uuid
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(text: &str) -> LayerDigest {
        LayerDigest::new(Digest::of(text.as_bytes()))
    }

    #[test]
    fn key_depends_on_the_layers_and_their_order() {
        let key = TreeKey::of([layer("a"), layer("b")]);
        assert_eq!(key, TreeKey::of([layer("a"), layer("b")]));
        let others = [vec![], vec![layer("a")], vec![layer("b"), layer("a")]];
        assert!(others.into_iter().all(|layers| TreeKey::of(layers) != key));
        assert_eq!(TreeKey::from_hex(&key.hex()), Some(key));
        assert_eq!(TreeKey::from_hex(&key.hex()[1..]), None);
        assert_eq!((key.uuid()[6] >> 4, key.uuid()[8] >> 6), (8, 2));
    }
}
