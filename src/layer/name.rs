//! Names in a layer: normalised paths, and what a path says about its member (an entry, a marker, a leftover).
//!
//! Nothing behind this door sees a path with `.`, `..`, an empty component or a NUL in it. Names are bytes: a layer
//! may hold any, and UTF-8 is only assumed where a person reads a message.

use std::fmt;

/// What one component may have, in bytes (`NAME_MAX`, linux/limits.h): no filesystem and no FUSE reply takes more.
pub const MAX_COMPONENT: usize = 255;

/// What a path may have, in bytes (`PATH_MAX` without the NUL, linux/limits.h). No program could name a longer one
/// in one call, and the tools that unpack layers stop there as well.
pub const MAX_PATH: usize = 4095;

/// Prefix of the names that are markers (image-spec, layer.md, "Whiteouts").
const MARKER: &[u8] = b".wh.";
/// Prefix of the names that AUFS keeps for itself; the opaque marker is the one among them with a meaning.
const RESERVED: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// A path in a layer, normalised: components joined by `/`, none in front or behind; the root is empty.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LayerPath(Box<[u8]>);

/// What a tar member means by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemberName {
    /// An entry of the layer. The path is empty for the root itself.
    Plain(LayerPath),
    /// Hides this path of the layers below.
    Whiteout(LayerPath),
    /// Hides what the layers below have in this directory.
    Opaque(LayerPath),
    /// A leftover of AUFS (`.wh..wh.plnk`, `.wh..wh.aufs`, `.wh..wh.orph`) or something in one.
    Dropped,
}

/// Why a name is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// No bytes at all. (`/` and `.` are names: they stand for the root.)
    #[error("name is empty")]
    Empty,
    /// Only PAX can carry one; kernel and C programs would see another name.
    #[error("name has a NUL byte")]
    Nul,
    /// Over [`MAX_COMPONENT`].
    #[error("name has a component of {0} bytes (at most {MAX_COMPONENT})")]
    LongComponent(usize),
    /// Over [`MAX_PATH`].
    #[error("name has {0} bytes (at most {MAX_PATH})")]
    LongPath(usize),
    /// `.wh.` alone.
    #[error("whiteout marker `.wh.` names nothing")]
    BareWhiteout,
    /// `.wh..` or `.wh...`: the directory itself or its parent.
    #[error("whiteout marker hides `.` or `..`")]
    WhiteoutOfDots,
    /// Something below `.wh.NAME`, which is no directory.
    #[error("entry lies below a whiteout marker")]
    BelowMarker,
}

impl LayerPath {
    /// Normalises a name as a tar has it: a leading `/`, empty and `.` components go, `..` takes the component before it
    /// away and stops at the root.
    ///
    /// `..` is resolved by text, as the tools that unpack layers do, not through what the component before it may be.
    pub fn parse(raw: &[u8]) -> Result<Self, NameError> {
        if raw.is_empty() {
            return Err(NameError::Empty);
        }
        if raw.contains(&0) {
            return Err(NameError::Nul);
        }
        let mut path = Vec::with_capacity(raw.len());
        for component in raw.split(|&byte| byte == b'/') {
            match component {
                b"" | b"." => {}
                b".." => path.truncate(path.iter().rposition(|&byte| byte == b'/').unwrap_or(0)),
                _ if component.len() > MAX_COMPONENT => {
                    return Err(NameError::LongComponent(component.len()));
                }
                _ => {
                    if !path.is_empty() {
                        path.push(b'/');
                    }
                    path.extend_from_slice(component);
                }
            }
        }
        if path.len() > MAX_PATH {
            return Err(NameError::LongPath(path.len()));
        }
        Ok(Self(path.into_boxed_slice()))
    }

    /// The root of the layer.
    #[must_use]
    pub fn root() -> Self {
        Self(Box::default())
    }

    /// The whole path, `/` between the components.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// True for the root itself.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The directory that holds it; empty for the root and for what is in the root.
    #[must_use]
    pub fn parent(&self) -> &[u8] {
        self.split().0
    }

    /// The last component; empty for the root.
    #[must_use]
    pub fn file_name(&self) -> &[u8] {
        self.split().1
    }

    fn split(&self) -> (&[u8], &[u8]) {
        match self.0.iter().rposition(|&byte| byte == b'/') {
            Some(slash) => (&self.0[..slash], &self.0[slash + 1..]),
            None => (&[], &self.0),
        }
    }
}

impl fmt::Display for LayerPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_root() { f.write_str("/") } else { Printable(&self.0).fmt(f) }
    }
}

impl fmt::Debug for LayerPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{self}`")
    }
}

impl MemberName {
    /// Tells what a member is from its name as the tar has it.
    ///
    /// The first component with a marker's name decides: below a leftover of AUFS everything is dropped, below any
    /// other marker nothing may stand, since no engine could show it.
    pub fn parse(raw: &[u8]) -> Result<Self, NameError> {
        Self::classify(LayerPath::parse(raw)?)
    }

    /// The same for a path that is normalised already.
    pub fn classify(path: LayerPath) -> Result<Self, NameError> {
        let bytes = path.as_bytes();
        let mut components = bytes.split(|&byte| byte == b'/');
        let Some(marker) = components.find(|component| component.starts_with(MARKER)) else {
            return Ok(Self::Plain(path));
        };
        let last = components.next().is_none();
        if marker.starts_with(RESERVED) && marker != OPAQUE {
            return Ok(Self::Dropped);
        }
        if !last {
            return Err(NameError::BelowMarker);
        }
        if marker == OPAQUE {
            return Ok(Self::Opaque(LayerPath(path.parent().into())));
        }
        match &marker[MARKER.len()..] {
            b"" => Err(NameError::BareWhiteout),
            b"." | b".." => Err(NameError::WhiteoutOfDots),
            hidden => {
                let directory = &bytes[..bytes.len() - marker.len()];
                Ok(Self::Whiteout(LayerPath([directory, hidden].concat().into_boxed_slice())))
            }
        }
    }
}

/// Shows bytes to a person: UTF-8 as it is, control characters, backslashes and all other bytes escaped (`\n`, `\\`, `\xff`).
#[derive(Debug, Clone, Copy)]
pub struct Printable<'a>(pub &'a [u8]);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write as _;
        for chunk in self.0.utf8_chunks() {
            for character in chunk.valid().chars() {
                if character.is_control() || character == '\\' {
                    for byte in character.encode_utf8(&mut [0; 4]).bytes() {
                        write!(f, "{}", std::ascii::escape_default(byte))?;
                    }
                } else {
                    f.write_char(character)?;
                }
            }
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(path: &[u8]) -> Result<MemberName, NameError> {
        Ok(MemberName::Plain(LayerPath(path.into())))
    }
    fn whiteout(path: &[u8]) -> Result<MemberName, NameError> {
        Ok(MemberName::Whiteout(LayerPath(path.into())))
    }
    fn opaque(path: &[u8]) -> Result<MemberName, NameError> {
        Ok(MemberName::Opaque(LayerPath(path.into())))
    }

    #[test]
    fn names_are_normalised_and_classified() {
        let cases: &[(&[u8], Result<MemberName, NameError>)] = &[
            (b"etc/hosts", plain(b"etc/hosts")),
            (b"/etc/hosts", plain(b"etc/hosts")),
            (b"./etc//./hosts/", plain(b"etc/hosts")),
            (b".", plain(b"")),
            (b"/", plain(b"")),
            (b"./", plain(b"")),
            (b"..", plain(b"")),
            (b"a/..", plain(b"")),
            (b"../../etc", plain(b"etc")),
            (b"a/b/../../c", plain(b"c")),
            (b"a/../../../c/..", plain(b"")),
            (b"...", plain(b"...")),
            (b"a/.b/..c", plain(b"a/.b/..c")),
            (b"\xff\xfe", plain(b"\xff\xfe")),
            (b"a\nb", plain(b"a\nb")),
            (b"", Err(NameError::Empty)),
            (b"a\0b", Err(NameError::Nul)),
            (b".wh.a", whiteout(b"a")),
            (b"./.wh.a", whiteout(b"a")),
            (b"d/.wh.a", whiteout(b"d/a")),
            (b"d/.wh.a/", whiteout(b"d/a")),
            (b"d/.wh..a", whiteout(b"d/.a")),
            (b".wh..wh", whiteout(b".wh")),
            (b".wh....", whiteout(b"...")),
            (b"d/.wh..wh..opq", opaque(b"d")),
            (b".wh..wh..opq", opaque(b"")),
            (b"/a/b/.wh..wh..opq", opaque(b"a/b")),
            (b"x/../.wh..wh..opq", opaque(b"")),
            (b".wh.", Err(NameError::BareWhiteout)),
            (b"d/.wh.", Err(NameError::BareWhiteout)),
            (b".wh..", Err(NameError::WhiteoutOfDots)),
            (b"d/.wh...", Err(NameError::WhiteoutOfDots)),
            (b".wh..wh.", Ok(MemberName::Dropped)),
            (b".wh..wh.plnk", Ok(MemberName::Dropped)),
            (b".wh..wh.plnk/12.34", Ok(MemberName::Dropped)),
            (b"d/.wh..wh.orph/.wh.", Ok(MemberName::Dropped)),
            (b".wh..wh..opq.", Ok(MemberName::Dropped)),
            (b".wh..wh.plnk/../a", plain(b"a")),
            (b".wh.a/b", Err(NameError::BelowMarker)),
            (b".wh.a/.wh.b", Err(NameError::BelowMarker)),
            (b".wh.a/.wh..wh.plnk", Err(NameError::BelowMarker)),
            (b".wh..wh..opq/b", Err(NameError::BelowMarker)),
            (b".wh./b", Err(NameError::BelowMarker)),
            (b".wh", plain(b".wh")),
            (b"a.wh.b", plain(b"a.wh.b")),
        ];
        for (raw, expected) in cases {
            assert_eq!(&MemberName::parse(raw), expected, "{}", Printable(raw));
        }
    }

    #[test]
    fn lengths_are_bounded_after_normalising() {
        assert!(LayerPath::parse(&[b'a'; 255]).is_ok());
        assert_eq!(LayerPath::parse(&[b'a'; 256]), Err(NameError::LongComponent(256)));
        assert_eq!(LayerPath::parse(&[b'/'; 10_000]), Ok(LayerPath::root()));
        assert!(LayerPath::parse(&b"a/".repeat(2048)).is_ok());
        assert_eq!(LayerPath::parse(&b"a/".repeat(2049)), Err(NameError::LongPath(4097)));
    }

    #[test]
    fn parent_and_file_name_split_at_the_last_slash() {
        let path = LayerPath::parse(b"a/b/c").unwrap();
        assert_eq!((path.parent(), path.file_name()), (&b"a/b"[..], &b"c"[..]));
        let path = LayerPath::parse(b"a").unwrap();
        assert_eq!((path.parent(), path.file_name()), (&b""[..], &b"a"[..]));
        assert_eq!((LayerPath::root().parent(), LayerPath::root().file_name()), (&b""[..], &b""[..]));
    }

    #[test]
    fn printable_escapes_what_a_terminal_would_act_on() {
        assert_eq!(Printable(b"a b\n\\\xff\x1b").to_string(), r"a b\n\\\xff\x1b");
        assert_eq!(Printable("ž\u{85}".as_bytes()).to_string(), r"ž\xc2\x85");
    }
}
