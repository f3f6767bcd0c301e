//! The walk over a layer's tar: generated archives, damaged archives with correct checksums, and random bytes.
//!
//! Properties: every entry is within the documented bounds of its type and lies within the tar; the result does not depend on
//! how the reader splits the tar; a truncated tar yields a prefix of the entries; after an error, the walk yields nothing. An
//! index can be built if and only if the walk reaches the end, and has the same entries with the same bytes.

use rcx_imagefs::image::{Digest, LayerDigest};
use rcx_imagefs::index::{BuildOptions, Index, IndexedKind, Layer, LayerBytes, build};
use rcx_imagefs::layer::{
    Codec, EntryKind, FileContent, LayerPath, MemberName, Segment, SpanLimits, TarEntry, TarFault, TarWalk,
    tar,
};
use rcx_imagefs::tree;

use crate::input::Input;
use crate::members::{self, BLOCK};
use support::model;

/// Runs the target on one input.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let choice = input.byte();
    let mut checks = Input::new(input.bytes(4));
    let tar = match choice % 5 {
        0 => input.rest().to_vec(),
        1 => {
            let mut tar = input.rest().to_vec();
            members::fix_checksums(&mut tar);
            tar
        }
        2 | 3 => members::archive(&mut input),
        _ => {
            let mut changes = Input::new(input.bytes(24));
            let mut tar = members::archive(&mut input);
            changes.mutate(&mut tar);
            members::fix_checksums(&mut tar);
            tar
        }
    };
    let (entries, error) = walk(&tar, usize::MAX);
    let mut last = None;
    for entry in &entries {
        check(&tar, entry);
        assert!(last < Some(entry.offset), "entries are not in the order of the tar");
        last = Some(entry.offset);
    }
    let (chunked, chunked_error) = walk(&tar, 1 + checks.below(1000));
    assert!(
        chunked == entries && error == chunked_error,
        "the result depends on the reader: {error:?}, {chunked_error:?}"
    );
    let (part, _) = walk(&tar[..checks.below(tar.len() + 1)], usize::MAX);
    assert!(entries.starts_with(&part), "a prefix of the tar yields different entries");
    if !tar.is_empty() && Codec::sniff(&tar) == Codec::Tar {
        check_index(&tar, &entries, error.is_none());
    }
}

/// Returns all entries up to the end or an error, and the error's message.
fn walk(tar: &[u8], chunk: usize) -> (Vec<TarEntry>, Option<String>) {
    let mut walk = TarWalk::new(std::io::BufReader::with_capacity(chunk.min(tar.len().max(1)), tar));
    let mut entries = Vec::new();
    loop {
        match walk.next_entry() {
            Ok(Some(entry)) => entries.push(entry),
            Ok(None) => {
                assert!(matches!(walk.next_entry(), Ok(None)), "the walk continues after the end");
                assert!(walk.position().get() <= tar.len() as u64);
                return (entries, None);
            }
            Err(error) => {
                let again = walk.next_entry().expect_err("the walk stays failed after an error");
                assert!(matches!(again.fault, TarFault::AlreadyFailed));
                assert!(error.offset.get() <= tar.len() as u64);
                return (entries, Some(error.to_string()));
            }
        }
    }
}

fn is_normal(path: &LayerPath) -> bool {
    let normal = model::normal(path.as_bytes());
    let names = normal.iter().all(|name| name.len() <= 255 && !name.contains(&0));
    normal.join(&b'/') == path.as_bytes() && names && path.as_bytes().len() <= 4095
}

/// Checks the bounds in the documentation of the entry's types.
fn check(tar: &[u8], entry: &TarEntry) {
    let size = tar.len() as u64;
    assert!(entry.offset.get().is_multiple_of(BLOCK as u64) && entry.offset.get() + BLOCK as u64 <= size);
    let path = match &entry.member {
        MemberName::Plain(path) | MemberName::Hidden(path) | MemberName::Opaque(path) => path,
        MemberName::Whiteout(path) => {
            assert!(!path.is_root(), "a whiteout hides the root");
            path
        }
        MemberName::Dropped => panic!("a dropped member was delivered"),
    };
    assert!(is_normal(path), "{path}");
    assert!(entry.mode <= 0o7777 && entry.uid != u32::MAX && entry.gid != u32::MAX);
    assert!(entry.mtime.nsec < 1_000_000_000);
    assert!(entry.xattrs.is_sorted_by(|a, b| a.0 < b.0), "attribute names are not unique and sorted");
    for (name, value) in &entry.xattrs {
        assert!((1..=tar::MAX_XATTR_NAME).contains(&name.len()) && value.len() <= tar::MAX_XATTR_VALUE);
        assert!(!name.contains(&0), "an attribute name contains a NUL");
        assert!(!name.starts_with(b"trusted.overlay.") && !name.starts_with(b"user.overlay."));
    }
    match &entry.kind {
        EntryKind::Directory | EntryKind::Fifo => {}
        EntryKind::Regular { size: length, content: FileContent::Contiguous(start) } => {
            assert!(
                start.get().checked_add(*length).is_some_and(|end| end <= size),
                "the content extends beyond the tar"
            );
        }
        EntryKind::Regular { size: length, content: FileContent::Sparse(segments) } => {
            let mut covered = None;
            for Segment { logical, tar, len } in segments {
                assert!(
                    *len > 0 && covered.is_none_or(|end| end < *logical),
                    "segments are empty, overlap or touch"
                );
                assert!(
                    tar.get().checked_add(*len).is_some_and(|end| end <= size),
                    "a segment extends beyond the tar"
                );
                covered = Some(logical + len);
            }
            assert!(covered.is_none_or(|end| end <= *length), "a segment extends beyond the file");
        }
        EntryKind::Symlink { target } => {
            assert!((1..=tar::MAX_TARGET).contains(&target.len()) && !target.contains(&0));
            assert_eq!(entry.mode, 0o777);
        }
        EntryKind::Hardlink { target } => assert!(is_normal(target), "{target}"),
        EntryKind::CharDevice { major, minor } | EntryKind::BlockDevice { major, minor } => {
            assert!(*major < 1 << 12 && *minor < 1 << 20);
            assert!((*major, *minor) != (0, 0) || matches!(entry.kind, EntryKind::BlockDevice { .. }));
        }
    }
    if path.is_root() && matches!(entry.member, MemberName::Plain(_)) {
        assert_eq!(entry.kind, EntryKind::Directory);
    }
}

/// Returns bytes `start..end` of a file, located as the walk reported.
fn content(tar: &[u8], content: &FileContent, start: u64, end: u64) -> Vec<u8> {
    let index = |offset: u64| usize::try_from(offset).unwrap();
    let mut bytes = vec![0; index(end - start)];
    let whole = |at| vec![Segment { logical: 0, tar: at, len: end }];
    let segments = match content {
        FileContent::Contiguous(at) => whole(*at),
        FileContent::Sparse(segments) => segments.clone(),
    };
    for Segment { logical, tar: at, len } in segments {
        let (from, to) = (logical.max(start), (logical + len).min(end));
        if from < to {
            let stored = index(at.get() + (from - logical));
            bytes[index(from - start)..index(to - start)]
                .copy_from_slice(&tar[stored..stored + index(to - from)]);
        }
    }
    bytes
}

fn check_index(tar: &[u8], walked: &[TarEntry], complete: bool) {
    let options = BuildOptions {
        limits: SpanLimits { target: 1024, max: 1500 },
        thin: false,
        ..BuildOptions::default()
    };
    let built = match build(tar, &options, || Ok(std::io::sink())) {
        Ok((built, _)) => built,
        Err(error) => return assert!(!complete, "{error}"),
    };
    assert!(complete, "an index was built from a tar that the walk refuses");
    let file = built.finish(&LayerDigest::new(Digest::of(tar)), tar).unwrap();
    let layer = Layer::new(Index::open(file).unwrap(), LayerBytes::Memory(tar.to_vec()), None);
    let index = layer.index();
    let plain = walked.iter().filter_map(|entry| match &entry.member {
        MemberName::Plain(path) | MemberName::Hidden(path) => Some((path, entry)),
        _ => None,
    });
    let mut count = 0;
    for ((id, entry), (path, walked)) in index.entries().zip(plain) {
        count += 1;
        assert_eq!((entry.path().as_slice(), entry.offset()), (path.as_bytes(), walked.offset));
        let attributes = (entry.mode(), entry.uid(), entry.gid(), entry.mtime());
        assert_eq!(attributes, (walked.mode, walked.uid, walked.gid, walked.mtime));
        let xattrs = walked.xattrs.iter().map(|(name, value)| (&**name, &**value));
        assert!(entry.xattrs().eq(xattrs), "{path}");
        match (entry.kind(), &walked.kind) {
            (IndexedKind::Regular { size }, EntryKind::Regular { size: walked_size, content: located }) => {
                assert_eq!(size, *walked_size);
                for start in [0, size.saturating_sub(2000), size / 2] {
                    let end = size.min(start + 5000);
                    let read = layer.read(id, start, 5000).unwrap();
                    assert!(read == content(tar, located, start, end), "{path} from {start}");
                }
            }
            (IndexedKind::Symlink { target }, EntryKind::Symlink { target: walked }) => {
                assert_eq!(target, &**walked)
            }
            (IndexedKind::Hardlink { target }, EntryKind::Hardlink { target: walked }) => {
                assert_eq!(target, walked.as_bytes());
            }
            (IndexedKind::CharDevice { major, minor }, EntryKind::CharDevice { major: a, minor: b })
            | (IndexedKind::BlockDevice { major, minor }, EntryKind::BlockDevice { major: a, minor: b }) => {
                assert_eq!((major, minor), (*a, *b));
            }
            (IndexedKind::Directory, EntryKind::Directory) | (IndexedKind::Fifo, EntryKind::Fifo) => {}
            (indexed, walked) => panic!("{path}: the index has {indexed:?}, the walk {walked:?}"),
        }
    }
    assert_eq!(count, index.len());
    let markers = |opaque: bool| {
        walked.iter().filter_map(move |entry| match &entry.member {
            MemberName::Whiteout(path) if !opaque => Some(path.as_bytes()),
            MemberName::Opaque(path) if opaque => Some(path.as_bytes()),
            _ => None,
        })
    };
    assert!(index.whiteouts().eq(markers(false)) && index.opaques().eq(markers(true)));
    // The merge may refuse the layer, but must not panic.
    let _ = tree::merge(&[index, index]);
}
