//! What the kernel makes of xattrs when they are set.
//!
//! An access ACL is a part of the mode. Setting one sets the permission bits, and one that says no more than they do leaves
//! nothing behind but them (fs/posix_acl.c, `posix_acl_update_mode`). So a mode and an ACL that contradict each other are no
//! state that a file can be in; the ACL wins here, as it does on a disk. A value that the kernel would not set is an error.

use super::EntryKind;

const ACCESS_ACL: &[u8] = b"system.posix_acl_access";
const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";

/// Tags of an ACL's entries, in the order in which they stand (include/uapi/linux/posix_acl.h).
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

const VERSION: [u8; 4] = 2u32.to_le_bytes();
/// The id of an entry that is not of a user or a group.
const NO_ID: u32 = u32::MAX;

/// Whether Linux has a place for an xattr (xattr(7)). On a disk the others cannot be written, and in a mount they could be
/// listed but not read.
pub(super) fn has_place(name: &[u8], kind: &EntryKind) -> bool {
    let is_directory = matches!(kind, EntryKind::Directory);
    let holds = |namespace: &[u8]| name.len() > namespace.len() && name.starts_with(namespace);
    match name {
        ACCESS_ACL => !matches!(kind, EntryKind::Symlink { .. }),
        DEFAULT_ACL => is_directory,
        _ if holds(b"user.") => is_directory || matches!(kind, EntryKind::Regular { .. }),
        _ => holds(b"trusted.") || holds(b"security."),
    }
}

/// What comes of setting an xattr.
#[derive(Debug)]
pub(super) struct Effect {
    /// The value that it has then, if there is one.
    pub(super) value: Option<Vec<u8>>,
    /// What the permission bits of the mode are then, if they change.
    pub(super) permissions: Option<u16>,
}

/// Sets an xattr; `None` where the kernel would refuse the value.
pub(super) fn set(name: &[u8], value: Vec<u8>) -> Option<Effect> {
    let (value, permissions) = match name {
        ACCESS_ACL => {
            let acl = Acl::parse(&value)?;
            ((!acl.is_mode).then_some(acl.value), acl.permissions)
        }
        DEFAULT_ACL => (Some(Acl::parse(&value)?.value).filter(|value| !value.is_empty()), None),
        b"security.capability" if !is_capability(&value) => return None,
        _ => (Some(value), None),
    };
    Some(Effect { value, permissions })
}

/// A well-formed ACL.
#[derive(Debug, PartialEq, Eq)]
struct Acl {
    /// As the kernel gives it back.
    value: Vec<u8>,
    /// The permission bits that it stands for; of an ACL without entries, none.
    permissions: Option<u16>,
    /// Whether it says no more than permission bits can.
    is_mode: bool,
}

impl Acl {
    /// Reads the value of an xattr `system.posix_acl_*`; `None` where the kernel would refuse it (`posix_acl_valid`).
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
            // Tags ascend; those of named users and groups may come again. What has to come first and last is seen below.
            let again = tag == last && matches!(tag, USER | GROUP);
            if permissions > 7 || !(tag > last || again) {
                return None;
            }
            match tag {
                USER_OBJ => bits[0] = permissions,
                GROUP_OBJ | MASK => bits[1] = permissions,
                OTHER => bits[2] = permissions,
                USER | GROUP if id != NO_ID => named = true,
                _ => return None,
            }
            let in_place = match tag {
                USER_OBJ => last == 0,
                USER | GROUP_OBJ => last != 0,
                GROUP | MASK => last >= GROUP_OBJ,
                // Named entries need a mask, which is what stands before.
                _ => last == MASK || (last == GROUP_OBJ && !named),
            };
            if !in_place {
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

/// Whether the kernel takes a value of `security.capability` (security/commoncap.c, `validheader`).
fn is_capability(value: &[u8]) -> bool {
    matches!((value.len(), value.get(3)), (20, Some(2)) | (24, Some(3)))
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
    fn permissions_are_those_of_owner_mask_and_others() {
        let full = acl(&[U, (USER, 7, 5), (USER, 0, 6), G, (GROUP, 7, 9), M, O]);
        assert_eq!(
            Acl::parse(&full),
            Some(Acl { value: full.clone(), permissions: Some(0o651), is_mode: false })
        );
        let mask = acl(&[U, G, M, O]);
        assert_eq!(
            Acl::parse(&mask),
            Some(Acl { value: mask.clone(), permissions: Some(0o651), is_mode: false })
        );
        let plain = acl(&[(USER_OBJ, 6, 0), G, O]);
        let clean = acl(&[U, G, O]);
        assert_eq!(Acl::parse(&plain), Some(Acl { value: clean, permissions: Some(0o641), is_mode: true }));
        assert_eq!(Acl::parse(&VERSION).unwrap().permissions, None);
    }

    #[test]
    fn what_the_kernel_refuses_is_malformed() {
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
            assert_eq!(Acl::parse(&acl(case)), None, "{case:?}");
        }
        for value in [&b""[..], b"garbage", &acl(&[U, G, O])[..27], &[acl(&[U, G, O]), vec![0]].concat()] {
            assert_eq!(Acl::parse(value), None, "{value:?}");
        }
    }

    #[test]
    fn capabilities_have_the_length_of_their_version() {
        let of = |version: u8, length: usize| {
            let mut value = vec![0; length];
            value[3] = version;
            is_capability(&value)
        };
        assert!(of(2, 20) && of(3, 24));
        assert!(!of(2, 24) && !of(3, 20) && !of(1, 12) && !of(1, 20) && !is_capability(b""));
    }
}
