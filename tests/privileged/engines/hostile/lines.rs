//! Random layers with what an author of a hostile image would try.

use std::fmt;

use proptest::prelude::*;
use proptest::sample::{Index, select};
use support::layers::{EntryKind, Line};

/// An image, described by what its layers add.
#[derive(Debug, Clone)]
pub(super) struct HostileImage {
    layers: Vec<Vec<Addition>>,
    /// Layers with one small file each, and layers without any.
    small_layers: usize,
    empty_layers: usize,
}

/// What a layer adds. Directories and files are chosen among those that exist by then.
#[derive(Debug, Clone)]
enum Addition {
    Node {
        within: Index,
        name: Noise,
        kind: AddedKind,
        attributes: Attributes,
    },
    /// A directory whose entries fill its blocks up to a difference in bytes.
    Full {
        within: Index,
        blocks: usize,
        names: usize,
        difference: isize,
    },
    /// Directories inside each other.
    Deep {
        within: Index,
        depth: usize,
        length: usize,
    },
    /// Names of one file.
    Links {
        to: Index,
        count: usize,
    },
    /// Files with the same or with different xattrs.
    ManyXattrs {
        files: usize,
        xattrs: usize,
        length: usize,
        shared: bool,
    },
    Hide {
        what: Index,
        opaque: bool,
    },
}

#[derive(Debug, Clone)]
enum AddedKind {
    Directory,
    File(Noise),
    Sparse(u64, Vec<(Index, Noise)>),
    Symlink(Noise),
    Hardlink(Index),
    Char(u32, u32),
    Block(u32, u32),
    Fifo,
}

#[derive(Debug, Clone)]
struct Attributes {
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: (i64, u32),
    xattrs: Vec<(String, Value)>,
}

/// The value of an xattr. Printed by its length, apart from ACLs.
#[derive(Clone)]
struct Value(Vec<u8>);

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            0..=100 => write!(f, "\"{}\"", self.0.escape_ascii()),
            length => write!(f, "[{length}]"),
        }
    }
}

/// Bytes, described by their number.
#[derive(Clone, Copy)]
struct Noise {
    length: usize,
    seed: u32,
}

impl fmt::Debug for Noise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.length, self.seed)
    }
}

impl Noise {
    /// The bytes. Some seeds give one byte again and again.
    fn bytes(self) -> Vec<u8> {
        if self.seed < 512 && self.seed.is_multiple_of(2) {
            return vec![u8::try_from(self.seed / 2).unwrap(); self.length];
        }
        let mut state = self.seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_be_bytes()[0]
        };
        (0..self.length).map(|_| next()).collect()
    }

    /// A name of a file that is not a marker.
    fn name(self) -> Vec<u8> {
        let mut name = self.bytes();
        name.iter_mut().filter(|byte| matches!(byte, 0 | b'/')).for_each(|byte| *byte = 0xfe);
        if name == b"." || name == b".." || name.starts_with(b".wh.") {
            name[0] = b'x';
        }
        name
    }

    /// The target of a symlink.
    fn target(self) -> Vec<u8> {
        let mut target = self.bytes();
        target.iter_mut().filter(|byte| **byte == 0).for_each(|byte| *byte = b'/');
        target
    }
}

fn noise(length: impl Strategy<Value = usize>) -> impl Strategy<Value = Noise> {
    (length, prop_oneof![1 => 0..512_u32, 3 => any::<u32>()])
        .prop_map(|(length, seed)| Noise { length, seed })
}

/// Numbers at and around limits.
fn around(limits: &'static [usize], max: usize) -> impl Strategy<Value = usize> {
    let near = (select(limits), 0..3_usize).prop_map(|(limit, by)| (limit + by).saturating_sub(1));
    prop_oneof![2 => near, 1 => 0..=max].prop_map(move |number| number.min(max))
}

fn name() -> impl Strategy<Value = Noise> {
    noise(prop_oneof![3 => 1..4_usize, 1 => 1..=255_usize, 1 => Just(255)])
}

fn kind() -> impl Strategy<Value = AddedKind> {
    // Lengths at which the target still fits beside an inode, and whole blocks.
    let target = around(&[1, 31, 416, 448, 479, 511, 1024, 4095], 4094).prop_map(|length| length + 1);
    let content = around(&[0, 1, 511, 512, 513, 4096, 65_536], 70_000);
    let major = prop_oneof![1..256_u32, Just(4095)];
    let minor = prop_oneof![0..256_u32, Just(256), Just(0xf_ffff)];
    let sparse_size = prop_oneof![
        20 => 1..100_000_u64,
        20 => (9..40_u32, 0..3_u64).prop_map(|(bits, by)| (1 << bits) + by - 1),
        1 => (40..63_u32, 0..3_u64).prop_map(|(bits, by)| (1 << bits) + by - 1),
        1 => Just(u64::MAX >> 1),
    ];
    let segments = prop::collection::vec((any::<Index>(), noise(around(&[1, 511, 512, 513], 3000))), 0..6);
    prop_oneof![
        4 => Just(AddedKind::Directory),
        4 => noise(content).prop_map(AddedKind::File),
        2 => (sparse_size, segments).prop_map(|(size, segments)| AddedKind::Sparse(size, segments)),
        3 => noise(target).prop_map(AddedKind::Symlink),
        2 => any::<Index>().prop_map(AddedKind::Hardlink),
        1 => (major.clone(), minor.clone()).prop_map(|(major, minor)| AddedKind::Char(major, minor)),
        1 => (major, minor).prop_map(|(major, minor)| AddedKind::Block(major, minor)),
        1 => Just(AddedKind::Fifo),
    ]
}

fn acl() -> impl Strategy<Value = Vec<u8>> {
    let permissions = || 0..8_u16;
    let id = || select(&[0, 1, 65_535, 65_536, u32::MAX - 1][..]);
    let named = || prop::collection::vec((id(), permissions()), 0..4);
    let fields =
        (permissions(), named(), permissions(), named(), prop::option::of(permissions()), permissions());
    fields.prop_map(|(user, users, group, groups, mask, other)| {
        let mut value = 2_u32.to_le_bytes().to_vec();
        let mut add = |tag: u16, permissions: u16, id: u32| {
            value.extend_from_slice(&[tag.to_le_bytes(), permissions.to_le_bytes()].concat());
            value.extend_from_slice(&id.to_le_bytes());
        };
        add(1, user, u32::MAX);
        users.iter().for_each(|(id, permissions)| add(2, *permissions, *id));
        add(4, group, u32::MAX);
        groups.iter().for_each(|(id, permissions)| add(8, *permissions, *id));
        match mask {
            Some(mask) => add(16, mask, u32::MAX),
            None if !users.is_empty() || !groups.is_empty() => add(16, 7, u32::MAX),
            None => {}
        }
        add(32, other, u32::MAX);
        value
    })
}

fn xattr() -> impl Strategy<Value = (String, Value)> {
    let namespace =
        select(&["user.", "trusted.", "security.", "system.", "com.apple.", "os2.", "user.overlay."][..]);
    // No `=`, which ends the name in a tar.
    let suffix = prop_oneof![
        2 => "[a-c]{0,2}",
        1 => "[a-z.\\x01\\n\u{e9}]{1,100}",
        1 => Just("n".repeat(255)),
    ];
    let length = prop_oneof![
        4 => around(&[0, 1, 20, 500, 1000, 1024], 2000),
        1 => around(&[4096, 65_500, 65_535], 65_535),
        // One byte more than EROFS can store.
        1 => prop_oneof![20 => Just(3_usize), 1 => Just(65_536)],
    ];
    let few = || select(&[0_u32, 1, 7][..]);
    let value = (length, few()).prop_map(|(length, seed)| Value(Noise { length, seed }.bytes()));
    // The flag for effective capabilities, and for version 3 the owner of a user namespace.
    let capability = (0..3_u32, 0..2_u8, prop::option::of(select(&[0, 1, u32::MAX - 1][..])));
    let capability = capability.prop_map(|(seed, effective, root)| {
        let mut value = vec![effective, 0, 0, if root.is_some() { 3 } else { 2 }];
        value.extend(Noise { length: 16, seed: 2 * seed + 1 }.bytes());
        value.extend(root.into_iter().flat_map(u32::to_le_bytes));
        ("security.capability".to_owned(), Value(value))
    });
    let acl_name = select(&["system.posix_acl_access", "system.posix_acl_default"][..]);
    prop_oneof![
        6 => (namespace, suffix, value).prop_map(|(namespace, suffix, value)| {
            let mut name = namespace.to_owned() + &suffix;
            name.truncate(255);
            (name, value)
        }),
        1 => capability,
        2 => (acl_name.clone(), acl()).prop_map(|(name, value)| (name.to_owned(), Value(value))),
        1 => acl_name.prop_map(|name| (name.to_owned(), Value(2_u32.to_le_bytes().to_vec()))),
    ]
}

fn attributes() -> impl Strategy<Value = Attributes> {
    let id = || select(&[0, 1, 65_534, 65_535, 65_536, u32::MAX >> 1, (u32::MAX >> 1) + 1, u32::MAX - 1][..]);
    let second = prop_oneof![
        3 => Just(0),
        3 => select(&[-1, 1, 1 << 31, (1 << 31) - 1, -(1 << 31), 1 << 32, 1 << 33, i64::MAX, -i64::MAX][..]),
        1 => any::<i32>().prop_map(i64::from),
    ];
    let nanosecond = prop_oneof![3 => Just(0), 1 => select(&[1, 999_999_999, 500_000_000][..])];
    let xattrs =
        prop_oneof![3 => prop::collection::vec(xattr(), 0..1), 1 => prop::collection::vec(xattr(), 0..10)];
    (0..0o10000_u32, id(), id(), (second, nanosecond), xattrs)
        .prop_map(|(mode, uid, gid, mtime, xattrs)| Attributes { mode, uid, gid, mtime, xattrs })
}

fn addition() -> impl Strategy<Value = Addition> {
    let full = (any::<Index>(), 1..4_usize, 1..20_usize, -1..=1_isize);
    let many = (1..4_usize, around(&[1, 254, 255, 256], 2000), 0..80_usize, any::<bool>());
    prop_oneof![
        30 => (any::<Index>(), name(), kind(), attributes())
            .prop_map(|(within, name, kind, attributes)| Addition::Node { within, name, kind, attributes }),
        2 => full.prop_map(|(within, blocks, names, difference)| Addition::Full { within, blocks, names, difference }),
        1 => (any::<Index>(), 1..40_usize, 1..80_usize)
            .prop_map(|(within, depth, length)| Addition::Deep { within, depth, length }),
        1 => (any::<Index>(), 1..60_usize).prop_map(|(to, count)| Addition::Links { to, count }),
        1 => many.prop_map(|(files, xattrs, length, shared)| Addition::ManyXattrs { files, xattrs, length, shared }),
        3 => (any::<Index>(), any::<bool>()).prop_map(|(what, opaque)| Addition::Hide { what, opaque }),
    ]
}

/// Random images.
pub(super) fn images() -> impl Strategy<Value = HostileImage> {
    let layers = prop::collection::vec(prop::collection::vec(addition(), 0..40), 0..4);
    let few = || prop_oneof![9 => Just(0_usize), 1 => 1..40_usize];
    (layers, few(), few()).prop_map(|(layers, small_layers, empty_layers)| HostileImage {
        layers,
        small_layers,
        empty_layers,
    })
}

impl HostileImage {
    /// The layers, from the lowest up. Some of their lines may break a rule, such as an entry below a file.
    pub(super) fn lines(&self) -> Vec<Vec<Line>> {
        let mut paths = ImagePaths { directories: vec![Vec::new()], files: Vec::new(), count: 0 };
        let mut layers: Vec<Vec<Line>> = self
            .layers
            .iter()
            .map(|additions| additions.iter().flat_map(|addition| paths.lines(addition)).collect())
            .collect();
        layers.extend(vec![Vec::new(); self.empty_layers]);
        for number in 0..self.small_layers {
            layers.push(vec![Line::new(
                format!("small{number}").as_bytes(),
                EntryKind::File(vec![b'x'; number]),
            )]);
        }
        layers
    }
}

/// The paths that the layers have added.
struct ImagePaths {
    directories: Vec<Vec<u8>>,
    files: Vec<Vec<u8>>,
    /// The number of additions, for unique names.
    count: usize,
}

/// The path of a name in a directory.
fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() { name.to_vec() } else { [directory, b"/", name].concat() }
}

impl ImagePaths {
    fn lines(&mut self, addition: &Addition) -> Vec<Line> {
        self.count += 1;
        let unique = format!("n{}", self.count).into_bytes();
        match addition {
            Addition::Node { within, name, kind, attributes } => {
                let path = join(within.get::<Vec<u8>>(&self.directories), &name.name());
                if path.len() > 3000 {
                    return Vec::new();
                }
                let kind = match kind {
                    AddedKind::Directory => EntryKind::Directory,
                    AddedKind::File(content) => EntryKind::File(content.bytes()),
                    AddedKind::Sparse(size, segments) => EntryKind::Sparse(*size, placed(*size, segments)),
                    AddedKind::Symlink(target) => EntryKind::Symlink(target.target()),
                    AddedKind::Hardlink(_) if self.files.is_empty() => return Vec::new(),
                    AddedKind::Hardlink(to) => EntryKind::Hardlink(to.get(&self.files).clone()),
                    AddedKind::Char(major, minor) => EntryKind::Char(*major, *minor),
                    AddedKind::Block(major, minor) => EntryKind::Block(*major, *minor),
                    AddedKind::Fifo => EntryKind::Fifo,
                };
                match kind {
                    EntryKind::Directory => self.directories.push(path.clone()),
                    _ => self.files.push(path.clone()),
                }
                let Attributes { mode, uid, gid, mtime, xattrs } = attributes.clone();
                let xattrs = xattrs.into_iter().map(|(name, value)| (name, value.0)).collect();
                vec![Line { path, kind, mode, uid, gid, mtime, xattrs }]
            }
            Addition::Full { within, blocks, names, difference } => {
                let directory = join(within.get::<Vec<u8>>(&self.directories), &unique);
                self.directories.push(directory.clone());
                full_directory(*blocks, *names, *difference)
                    .iter()
                    .map(|name| Line::new(&join(&directory, name), EntryKind::Fifo))
                    .collect()
            }
            Addition::Deep { within, depth, length } => {
                let mut path = within.get(&self.directories).clone();
                for _ in 0..(*depth).min(2500 / length) {
                    path = join(&path, &vec![b'd'; *length]);
                }
                if path.len() > 3000 {
                    return Vec::new();
                }
                self.directories.push(path.clone());
                vec![Line::new(&join(&path, &unique), EntryKind::Fifo)]
            }
            Addition::Links { to, count } if !self.files.is_empty() => {
                let to = to.get(&self.files);
                let link = |number| {
                    let path = [&unique[..], b"-", format!("{number}").as_bytes()].concat();
                    Line::new(&path, EntryKind::Hardlink(to.clone()))
                };
                (0..*count).map(link).collect()
            }
            Addition::Links { .. } => Vec::new(),
            Addition::ManyXattrs { files, xattrs, length, shared } => (0..*files)
                .map(|file| {
                    let path = [&unique[..], b"-", format!("{file}").as_bytes()].concat();
                    let mut line = Line::new(&path, EntryKind::File(Vec::new()));
                    for xattr in 0..*xattrs {
                        let mut value = vec![b'v'; *length];
                        if !shared {
                            value.extend_from_slice(&[file.to_le_bytes(), xattr.to_le_bytes()].concat());
                        }
                        line.xattrs.push((format!("user.{xattr}"), value));
                    }
                    line
                })
                .collect(),
            Addition::Hide { what, opaque: true } => {
                vec![Line::new(what.get::<Vec<u8>>(&self.directories), EntryKind::Opaque)]
            }
            Addition::Hide { what, opaque: false } if !self.files.is_empty() => {
                let path = what.get::<Vec<u8>>(&self.files);
                let name = path.rsplit(|byte| *byte == b'/').next().unwrap();
                // A longer name has no whiteout: with its prefix it would have more than 255 bytes.
                let can_be_hidden = name.len() + ".wh.".len() <= 255;
                can_be_hidden.then(|| Line::new(path, EntryKind::Whiteout)).into_iter().collect()
            }
            Addition::Hide { .. } => Vec::new(),
        }
    }
}

/// Segments at ascending places in a file, without those that do not fit.
fn placed(size: u64, segments: &[(Index, Noise)]) -> Vec<(u64, Vec<u8>)> {
    // `Index` chooses among at most `usize::MAX` places.
    let place = |index: &Index| index.index(usize::try_from(size).unwrap()) as u64;
    let mut places: Vec<(u64, Vec<u8>)> =
        segments.iter().map(|(at, noise)| (place(at), noise.bytes())).collect();
    places.sort();
    let mut end = 0;
    places.retain_mut(|(at, bytes)| {
        bytes.truncate(usize::try_from(size - *at).unwrap_or(usize::MAX));
        let fits = *at >= end && !bytes.is_empty();
        if fits {
            end = *at + bytes.len() as u64;
        }
        fits
    });
    places
}

/// Names that fill the blocks of a directory, each with `names` of them, and `difference` bytes more or fewer.
fn full_directory(blocks: usize, names: usize, difference: isize) -> Vec<Vec<u8>> {
    let mut list: Vec<Vec<u8>> = Vec::new();
    for block in 0..blocks {
        // The first block has `.` and `..`; an entry takes 12 bytes and its name.
        let free: usize = if block == 0 { 512 - 27 } else { 512 };
        let free = free.checked_add_signed(difference).unwrap() - 12 * names;
        let (mut left, mut parts) = (free, names.max(2));
        while left > 0 && parts > 0 {
            let length = left.div_ceil(parts).min(255);
            // Sorted behind all former names.
            let mut name = format!("{:04}", list.len()).into_bytes();
            name.resize(length.max(4), b'n');
            left = left.saturating_sub(name.len());
            list.push(name);
            parts -= 1;
        }
    }
    list
}
