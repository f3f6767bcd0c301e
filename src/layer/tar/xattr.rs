//! The effect of setting an xattr, as in the kernel.
//!
//! An access ACL and the mode share the permission bits. Setting an ACL sets the bits, and an ACL that is equivalent to them
//! is not stored (fs/posix_acl.c, `posix_acl_update_mode`). So no file can have an ACL that contradicts its mode. If a tar
//! contains such a pair, the ACL wins, as it does when the tar is unpacked. A value that the kernel would refuse is an error.

use super::EntryKind;

const ACCESS_ACL: &[u8] = b"system.posix_acl_access";
const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";

/// Tags of an ACL's entries, in their required order (include/uapi/linux/posix_acl.h).
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

const VERSION: [u8; 4] = 2u32.to_le_bytes();
/// The ID in entries that name neither a user nor a group.
const NO_ID: u32 = u32::MAX;

/// Whether a name is in a namespace of Linux. Tars from other systems contain names of theirs (`com.apple.ResourceFork`), with values
/// that no limit of Linux applies to.
pub(super) fn is_of_linux(name: &[u8]) -> bool {
    [&b"user."[..], b"trusted.", b"security.", b"system."].iter().any(|namespace| name.starts_with(namespace))
}

/// Whether Linux can store an xattr on a file of this kind (xattr(7)). Others cannot be written to a disk, and in a mount
/// they could be listed but not read.
pub(super) fn is_storable(name: &[u8], kind: &EntryKind) -> bool {
    let is_directory = matches!(kind, EntryKind::Directory);
    let in_namespace = |namespace: &[u8]| name.len() > namespace.len() && name.starts_with(namespace);
    match name {
        ACCESS_ACL => !matches!(kind, EntryKind::Symlink { .. }),
        DEFAULT_ACL => is_directory,
        _ if in_namespace(b"user.") => is_directory || matches!(kind, EntryKind::Regular { .. }),
        _ => in_namespace(b"trusted.") || in_namespace(b"security."),
    }
}

/// The effect of setting an xattr.
#[derive(Debug)]
pub(super) struct XattrEffect {
    /// The stored value; `None` if nothing is stored.
    pub(super) value: Option<Vec<u8>>,
    /// The new permission bits of the mode; `None` if they do not change.
    pub(super) permissions: Option<u16>,
}

/// Returns the effect of setting an xattr; `None` if the kernel would refuse the value.
pub(super) fn effect_of_setting(name: &[u8], value: Vec<u8>) -> Option<XattrEffect> {
    let (value, permissions) = match name {
        ACCESS_ACL => {
            let acl = PosixAcl::parse(&value)?;
            ((!acl.is_mode).then_some(acl.value), acl.permissions)
        }
        DEFAULT_ACL => (Some(PosixAcl::parse(&value)?.value).filter(|value| !value.is_empty()), None),
        b"security.capability" if !is_capability(&value) => return None,
        _ => (Some(value), None),
    };
    Some(XattrEffect { value, permissions })
}

/// A well-formed ACL.
#[derive(Debug, PartialEq, Eq)]
struct PosixAcl {
    /// The value as the kernel would return it.
    value: Vec<u8>,
    /// The permission bits that the ACL sets; `None` for an ACL without entries.
    permissions: Option<u16>,
    /// Whether the ACL is equivalent to permission bits.
    is_mode: bool,
}

impl PosixAcl {
    /// Parses the value of an xattr `system.posix_acl_*`; `None` if the kernel would refuse it (`posix_acl_valid`).
    fn parse(value: &[u8]) -> Option<Self> {
        let entries = value.strip_prefix(&VERSION)?;
        if entries.is_empty() {
            return Some(Self { value: Vec::new(), permissions: None, is_mode: true });
        }
        let mut clean = VERSION.to_vec();
        let mut bits = [0; 3];
        let mut last = 0;
        let mut named = false;
        let (entries, []) = entries.as_chunks::<8>() else { return None };
        for [tag_low, tag_high, low, high, id @ ..] in entries {
            let (tag, permissions) =
                (u16::from_le_bytes([*tag_low, *tag_high]), u16::from_le_bytes([*low, *high]));
            let id = u32::from_le_bytes(*id);
            // Tags ascend; only those of named users and groups may repeat. The first and last are checked below.
            let repeats = tag == last && matches!(tag, USER | GROUP);
            if permissions > 7 || !(tag > last || repeats) {
                return None;
            }
            match tag {
                USER_OBJ => bits[0] = permissions,
                GROUP_OBJ | MASK => bits[1] = permissions,
                OTHER => bits[2] = permissions,
                USER | GROUP if id != NO_ID => named = true,
                _ => return None,
            }
            let order_is_valid = match tag {
                USER_OBJ => last == 0,
                USER | GROUP_OBJ => last != 0,
                GROUP | MASK => last >= GROUP_OBJ,
                // `OTHER` comes last. A mask must precede it if there are named entries.
                _ => last == MASK || (last == GROUP_OBJ && !named),
            };
            if !order_is_valid {
                return None;
            }
            clean.extend_from_slice(&[*tag_low, *tag_high, *low, *high]);
            clean.extend_from_slice(&if matches!(tag, USER | GROUP) { id } else { NO_ID }.to_le_bytes());
            last = tag;
        }
        let [user, group, other] = bits;
        let is_mode = clean.len() == VERSION.len() + 3 * 8;
        let permissions = Some(user << 6 | group << 3 | other);
        (last == OTHER).then_some(Self { value: clean, permissions, is_mode })
    }
}

/// Whether the kernel accepts a value of `security.capability` (security/commoncap.c, `validheader`). The header is the version and
/// a flag; version 3 ends with the user ID of a namespace's root.
fn is_capability(value: &[u8]) -> bool {
    match value {
        [0 | 1, 0, 0, 2, data @ ..] => data.len() == 16,
        [0 | 1, 0, 0, 3, data @ ..] => data.len() == 20 && !data.ends_with(&NO_ID.to_le_bytes()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut value = VERSION.to_vec();
        for (tag, permissions, id) in entries {
            value.extend_from_slice(&tag.to_le_bytes());
            value.extend_from_slice(&permissions.to_le_bytes());
            value.extend_from_slice(&id.to_le_bytes());
        }
        value
    }

    const U: (u16, u16, u32) = (USER_OBJ, 6, NO_ID);
    const G: (u16, u16, u32) = (GROUP_OBJ, 4, NO_ID);
    const M: (u16, u16, u32) = (MASK, 5, NO_ID);
    const O: (u16, u16, u32) = (OTHER, 1, NO_ID);

    #[test]
    fn acl_sets_permissions_from_owner_mask_and_others() {
        let full = acl(&[U, (USER, 7, 5), (USER, 0, 6), G, (GROUP, 7, 9), M, O]);
        assert_eq!(
            PosixAcl::parse(&full),
            Some(PosixAcl { value: full.clone(), permissions: Some(0o651), is_mode: false })
        );
        let mask = acl(&[U, G, M, O]);
        assert_eq!(
            PosixAcl::parse(&mask),
            Some(PosixAcl { value: mask.clone(), permissions: Some(0o651), is_mode: false })
        );
        let plain = acl(&[(USER_OBJ, 6, 0), G, O]);
        let clean = acl(&[U, G, O]);
        assert_eq!(
            PosixAcl::parse(&plain),
            Some(PosixAcl { value: clean, permissions: Some(0o641), is_mode: true })
        );
        assert_eq!(PosixAcl::parse(&VERSION).unwrap().permissions, None);
    }

    #[test]
    fn acl_that_the_kernel_refuses_is_malformed() {
        let named = (USER, 7, 5);
        let cases: &[&[(u16, u16, u32)]] = &[
            &[U],
            &[U, G],
            &[G, O],
            &[O],
            &[U, O],
            &[U, G, O, O],
            &[U, U, G, O],
            &[U, G, G, O],
            &[G, U, O],
            &[U, named, G, O],
            &[named, U, G, M, O],
            &[U, G, named, M, O],
            &[U, (USER, 7, NO_ID), G, M, O],
            &[U, (GROUP, 7, 5), G, M, O],
            &[U, named, M, O],
            &[(USER_OBJ, 8, NO_ID), G, O],
            &[U, G, (3, 4, NO_ID), O],
            &[U, G, (0x40, 4, NO_ID), O],
        ];
        for case in cases {
            assert_eq!(PosixAcl::parse(&acl(case)), None, "{case:?}");
        }
        for value in [&b""[..], b"garbage", &acl(&[U, G, O])[..27], &[acl(&[U, G, O]), vec![0]].concat()] {
            assert_eq!(PosixAcl::parse(value), None, "{value:?}");
        }
    }

    #[test]
    fn capability_that_the_kernel_refuses_is_malformed() {
        let of = |version: u8, length: usize| {
            let mut value = vec![0; length];
            value[3] = version;
            value
        };
        assert!(is_capability(&of(2, 20)) && is_capability(&of(3, 24)));
        let of_another_length = [of(2, 24), of(3, 20), of(1, 12), of(1, 20), Vec::new()];
        assert!(of_another_length.iter().all(|value| !is_capability(value)));
        for (at, byte, accepted) in
            [(0, 1, true), (0, 2, false), (0, 0x81, false), (1, 1, false), (2, 0x80, false)]
        {
            for (version, length) in [(2, 20), (3, 24)] {
                let mut value = of(version, length);
                value[at] = byte;
                assert_eq!(is_capability(&value), accepted, "{value:?}");
            }
        }
        let mut of_nobody = of(3, 24);
        of_nobody[20..].fill(0xff);
        assert!(!is_capability(&of_nobody));
        of_nobody[20] = 0xfe;
        assert!(is_capability(&of_nobody));
    }
}
