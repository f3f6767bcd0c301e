//! Names in a layer: normalised paths, and their meaning as an entry, a marker or a leftover of AUFS.
//!
//! Code outside this file never sees a path with `.`, `..`, an empty component or a NUL byte. Names are bytes: a layer may
//! use any, and only messages assume UTF-8.

use std::fmt;

use crate::error::ErrorCode;

/// Longest component of a path, in bytes (`NAME_MAX`, linux/limits.h). No filesystem and no FUSE reply allows more.
pub const MAX_COMPONENT: usize = 255;

/// Longest path, in bytes (`PATH_MAX` without the NUL, linux/limits.h). No program could pass a longer one to a system call,
/// and the tools that unpack layers have the same limit.
pub const MAX_PATH: usize = 4095;

/// Prefix of the names of markers (image-spec, layer.md, "Whiteouts").
const MARKER: &[u8] = b".wh.";
/// Prefix of the names that AUFS reserves. Among them, the opaque marker hides files, and the files below
/// `.wh..wh.plnk` are the targets of hard links.
const RESERVED: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// A normalised path in a layer: components joined by `/`, without a leading or trailing `/`. The root is empty.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LayerPath(Box<[u8]>);

/// The meaning of a tar member's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemberName {
    /// An entry of the layer. The path is empty for the root itself.
    Plain(LayerPath),
    /// A whiteout marker. Hides this path in the layers below.
    Whiteout(LayerPath),
    /// An opaque marker. Hides everything that the layers below have in this directory.
    Opaque(LayerPath),
    /// A member below a leftover of AUFS, of which the tree shows nothing. In layers that docker made on AUFS, files with several
    /// names are below `.wh..wh.plnk`, and their names are hard links to them.
    Hidden(LayerPath),
    /// A leftover of AUFS (`.wh..wh.plnk`, `.wh..wh.aufs`, `.wh..wh.orph`). Has no meaning.
    Dropped,
}

/// The reason why a member's name is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The name is empty. (`/` and `.` are valid: they name the root.)
    #[error("name is empty")]
    Empty,
    /// The name contains a NUL byte. Only PAX can carry one; the kernel and C programs would see a shorter name.
    #[error("name contains a NUL byte")]
    Nul,
    /// A component is longer than [`MAX_COMPONENT`].
    #[error("name has a component of {0} bytes (at most {MAX_COMPONENT})")]
    LongComponent(usize),
    /// The normalised path is longer than [`MAX_PATH`].
    #[error("name has {0} bytes (at most {MAX_PATH})")]
    LongPath(usize),
    /// The marker is just `.wh.`.
    #[error("whiteout marker `.wh.` names nothing")]
    BareWhiteout,
    /// The marker `.wh..` or `.wh...` would hide the directory itself or its parent.
    #[error("whiteout marker hides `.` or `..`")]
    WhiteoutOfDots,
    /// The member is below a marker, which is not a directory.
    #[error("entry is below a whiteout marker")]
    BelowMarker,
}

impl NameError {
    /// Returns the stable code of this error.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::LongComponent(_) | Self::LongPath(_) => ErrorCode::LayerLimit,
            Self::Empty | Self::Nul | Self::BareWhiteout | Self::WhiteoutOfDots | Self::BelowMarker => {
                ErrorCode::Layer
            }
        }
    }
}

impl LayerPath {
    /// Normalises a name from a tar: removes a leading `/` and empty and `.` components; `..` removes the previous
    /// component and has no effect at the root.
    ///
    /// `..` is resolved textually, as the tools that unpack layers do, even if the previous component is a symlink.
    ///
    /// # Errors
    ///
    /// The name is empty or too long, or contains a NUL byte.
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

    /// The whole path, with `/` between the components.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether the path is the root.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The path of the parent directory; empty for the root and for paths directly below it.
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

/// Whether a component of a path is a leftover of AUFS. The tree shows neither it nor anything below it.
#[must_use]
pub fn is_leftover(component: &[u8]) -> bool {
    component.starts_with(RESERVED) && component != OPAQUE
}

impl MemberName {
    /// Normalises a name from a tar and determines its meaning.
    ///
    /// The first component that is named like a marker determines the meaning. Everything below a leftover of AUFS is hidden.
    /// A member below any other marker is an error, because no engine could show it.
    ///
    /// # Errors
    ///
    /// The name is invalid, see [`NameError`].
    pub fn parse(raw: &[u8]) -> Result<Self, NameError> {
        Self::classify(LayerPath::parse(raw)?)
    }

    /// Determines the meaning of a normalised path.
    ///
    /// # Errors
    ///
    /// The path is an invalid marker or is below a marker.
    pub fn classify(path: LayerPath) -> Result<Self, NameError> {
        let bytes = path.as_bytes();
        let mut components = bytes.split(|&byte| byte == b'/');
        let Some(marker) = components.find(|component| component.starts_with(MARKER)) else {
            return Ok(Self::Plain(path));
        };
        let last = components.next().is_none();
        if is_leftover(marker) {
            return Ok(if last { Self::Dropped } else { Self::Hidden(path) });
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

/// Displays bytes in a message: valid UTF-8 unchanged; control characters, backslashes and other bytes escaped (`\n`, `\\`,
/// `\xff`).
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
    fn hidden(path: &[u8]) -> Result<MemberName, NameError> {
        Ok(MemberName::Hidden(LayerPath(path.into())))
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
            (b".wh..wh.plnk/12.34", hidden(b".wh..wh.plnk/12.34")),
            (b"d/.wh..wh.orph/.wh.", hidden(b"d/.wh..wh.orph/.wh.")),
            (b"/d/.wh..wh.orph/..", plain(b"d")),
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
    fn length_limit_applies_to_the_normalised_path() {
        assert!(LayerPath::parse(&[b'a'; 255]).is_ok());
        assert_eq!(LayerPath::parse(&[b'a'; 256]), Err(NameError::LongComponent(256)));
        assert_eq!(LayerPath::parse(&[b'/'; 10_000]), Ok(LayerPath::root()));
        assert!(LayerPath::parse(&b"a/".repeat(2048)).is_ok());
        assert_eq!(LayerPath::parse(&b"a/".repeat(2049)), Err(NameError::LongPath(4097)));
    }

    #[test]
    fn path_is_split_into_parent_and_file_name_at_the_last_slash() {
        let path = LayerPath::parse(b"a/b/c").unwrap();
        assert_eq!((path.parent(), path.file_name()), (&b"a/b"[..], &b"c"[..]));
        let path = LayerPath::parse(b"a").unwrap();
        assert_eq!((path.parent(), path.file_name()), (&b""[..], &b"a"[..]));
        assert_eq!((LayerPath::root().parent(), LayerPath::root().file_name()), (&b""[..], &b""[..]));
    }

    #[test]
    fn printable_escapes_control_characters_and_invalid_utf8() {
        assert_eq!(Printable(b"a b\n\\\xff\x1b").to_string(), r"a b\n\\\xff\x1b");
        assert_eq!(Printable("ž\u{85}".as_bytes()).to_string(), r"ž\xc2\x85");
    }
}
