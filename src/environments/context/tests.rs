//! Tests of contexts: what is stored, and what is refused.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use proptest::prelude::*;
use tar::{Builder, EntryType, Header};

use super::*;

/// Packs a source. Returns the summary, and the entries of the tar as text.
fn packed(source: ContextSource<'_>, limit: u64) -> Result<(ContextSummary, Vec<String>), ContextError> {
    let mut out = tempfile::tempfile().unwrap();
    let summary = pack(source, limit, &mut out)?;
    assert_eq!(digest(archive::rewound(&out)?).unwrap(), summary.digest);
    let mut archive = tar::Archive::new(archive::rewound(&out)?);
    let line = |entry: io::Result<tar::Entry<'_, &File>>| {
        let mut entry = entry.unwrap();
        let header = entry.header().clone();
        assert_eq!((header.mtime().unwrap(), header.uid().unwrap(), header.gid().unwrap()), (0, 0, 0));
        let kind = match header.entry_type() {
            EntryType::Directory => "d",
            EntryType::Symlink => "l",
            _ => "f",
        };
        let path = entry.path().unwrap().display().to_string();
        let target = entry.link_name().unwrap().map(|target| target.display().to_string());
        let mut content = Vec::new();
        io::Read::read_to_end(&mut entry, &mut content).unwrap();
        let content = String::from_utf8_lossy(&content).into_owned();
        format!("{kind} {:o} {path} {}", header.mode().unwrap(), target.unwrap_or(content))
            .trim_end()
            .to_owned()
    };
    let lines = archive.entries().unwrap().map(line).collect();
    Ok((summary, lines))
}

/// A tar of entries: type, path, link or content.
fn archive_of(entries: &[(EntryType, &str, &str)]) -> File {
    let mut builder = Builder::new(tempfile::tempfile().unwrap());
    for &(kind, path, text) in entries {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o4644);
        header.set_mtime(1_700_000_000);
        header.set_uid(1000);
        // Without the checks of `append_data`.
        let name = &mut header.as_old_mut().name;
        name[..path.len()].copy_from_slice(path.as_bytes());
        let content = match kind {
            EntryType::Symlink | EntryType::Link => {
                header.as_old_mut().linkname[..text.len()].copy_from_slice(text.as_bytes());
                ""
            }
            _ => text,
        };
        header.set_size(content.len() as u64);
        header.set_cksum();
        builder.append(&header, content.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

const FROM: (EntryType, &str, &str) = (EntryType::Regular, "Dockerfile", "FROM scratch\n");

#[test]
fn directory_and_its_tar_give_the_same_bytes_whatever_their_order_times_and_owners() {
    let dir = tempfile::tempdir().unwrap();
    let long = format!("sub/{}", "n".repeat(150));
    fs::create_dir_all(dir.path().join("sub/empty")).unwrap();
    for (path, text) in [("Dockerfile", "FROM scratch\n"), ("sub/b", "B"), ("a", ""), (&long, "L")] {
        fs::write(dir.path().join(path), text).unwrap();
        fs::set_permissions(dir.path().join(path), fs::Permissions::from_mode(0o644)).unwrap();
    }
    for path in ["sub", "sub/empty"] {
        fs::set_permissions(dir.path().join(path), fs::Permissions::from_mode(0o755)).unwrap();
    }
    symlink("../a", dir.path().join("sub/link")).unwrap();
    symlink("not/there", dir.path().join("dangling")).unwrap();
    let (of_directory, lines) = packed(ContextSource::Directory(dir.path()), 1 << 20).unwrap();
    let long = format!("f 644 {long} L");
    let expected = [
        "f 644 Dockerfile FROM scratch",
        "f 644 a",
        "l 777 dangling not/there",
        "d 755 sub",
        "f 644 sub/b B",
        "d 755 sub/empty",
        "l 777 sub/link ../a",
        &long,
    ];
    assert_eq!(lines, expected);
    assert_eq!(of_directory.entries, 8);

    let archive = dir.path().with_extension("tar");
    for format in ["gnu", "pax"] {
        let made = std::process::Command::new("tar")
            .args(["--format", format, "--mtime=2001-01-01", "--owner=7", "-C"])
            .arg(dir.path())
            .arg("-cf")
            .arg(&archive)
            .args(["./dangling", "sub", "a", "./Dockerfile"])
            .status();
        assert!(made.unwrap().success());
        let (of_archive, _) =
            packed(ContextSource::Archive(&File::open(&archive).unwrap()), 1 << 20).unwrap();
        assert_eq!(of_archive, of_directory, "{format}");
    }
    fs::remove_file(archive).unwrap();
}

#[test]
fn parents_that_a_tar_leaves_out_are_added_and_hard_links_become_files() {
    let archive = archive_of(&[
        (EntryType::XGlobalHeader, "pax_global_header", ""),
        (EntryType::Directory, "./", ""),
        (EntryType::Regular, "x/y/z", "Z"),
        (EntryType::Link, "hard", "./x/y/z"),
        FROM,
    ]);
    let (_, lines) = packed(ContextSource::Archive(&archive), 1 << 20).unwrap();
    assert_eq!(
        lines,
        ["f 644 Dockerfile FROM scratch", "f 644 hard Z", "d 755 x", "d 755 x/y", "f 644 x/y/z Z"],
        "set-uid bits are removed"
    );
}

#[test]
fn names_and_links_that_lead_out_are_refused_by_name() {
    use EntryType::{Block, Char, Directory, Fifo, Link, Regular, Symlink};
    let leads_out = |path: &str, target: &str| {
        format!("`{path}` in the context is a link to `{target}`, which leads out of the context")
    };
    let cases = [
        (&[(Regular, "../x", "")][..], "`../x` in the context has `..` in its path".to_owned()),
        (&[(Regular, "a/../x", "")], "`a/../x` in the context has `..` in its path".to_owned()),
        (&[(Regular, "/etc/x", "")], "`/etc/x` in the context has an absolute path".to_owned()),
        (&[(Symlink, "a", "/etc/passwd")], leads_out("a", "/etc/passwd")),
        (&[(Symlink, "a", "..")], leads_out("a", "..")),
        (&[(Symlink, "a/b/c", "../../../x")], leads_out("a/b/c", "../../../x")),
        // Only real directories count: `p/up` leads to the top, so `p/up/..` leads out of it.
        (&[(Symlink, "p/up", ".."), (Symlink, "p/x", "up/../x")], leads_out("p/x", "up/../x")),
        (&[(Link, "a", "../x")], leads_out("a", "../x")),
        (
            &[(Link, "a", "none")],
            "`a` in the context is a hard link to no file that comes before it".to_owned(),
        ),
        (
            &[(Symlink, "a", "b"), (Symlink, "b", "a")],
            "`a` in the context is a link that leads through too many links".to_owned(),
        ),
        (&[(Symlink, "a", "")], "`a` in the context is a link without a target".to_owned()),
        (
            &[(Symlink, "a", "b"), (Regular, "a/x", "")],
            "`a/x` in the context is below a name that is no directory".to_owned(),
        ),
        (&[(Char, "c", "")], "`c` in the context is a device or a pipe".to_owned()),
        (&[(Block, "b", "")], "`b` in the context is a device or a pipe".to_owned()),
        (&[(Fifo, "f", "")], "`f` in the context is a device or a pipe".to_owned()),
        (&[(Directory, "x", ""), (Regular, "x", "")], "`x` in the context occurs twice".to_owned()),
    ];
    for (entries, expected) in cases {
        let archive = archive_of(&[entries, &[FROM]].concat());
        let error = packed(ContextSource::Archive(&archive), 1 << 20).unwrap_err();
        assert_eq!((error.to_string(), error.code()), (expected, ErrorCode::Context));
    }
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("Dockerfile"), "FROM scratch").unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        dir.path().join("pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RWXU,
        0,
    )
    .unwrap();
    let error = packed(ContextSource::Directory(dir.path()), 1 << 20).unwrap_err();
    assert_eq!(error.to_string(), "`pipe` in the context is a device, a socket or a pipe");
    fs::remove_file(dir.path().join("pipe")).unwrap();
    symlink("/etc", dir.path().join("etc")).unwrap();
    let error = packed(ContextSource::Directory(dir.path()), 1 << 20).unwrap_err();
    assert_eq!(error.to_string(), leads_out("etc", "/etc"));
}

#[test]
fn sparse_files_of_a_tar_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    File::create(dir.path().join("holes")).unwrap().set_len(1 << 20).unwrap();
    for format in ["gnu", "pax"] {
        let archive = dir.path().join(format);
        let arguments = ["--format", format, "--sparse", "-cf", format, "holes"];
        assert!(
            std::process::Command::new("tar")
                .args(arguments)
                .current_dir(dir.path())
                .status()
                .unwrap()
                .success()
        );
        let error =
            packed(ContextSource::Archive(&File::open(archive).unwrap()), 1 << 22).unwrap_err().to_string();
        assert!(
            error.ends_with("holes` in the context is a sparse file; pack it without --sparse"),
            "{format}: {error}"
        );
    }
}

#[test]
fn context_without_a_dockerfile_or_with_an_unreadable_one_is_refused() {
    use EntryType::{Directory, Regular, Symlink};
    let long = format!("FROM scratch\n{}", "#".repeat(1 << 20));
    for (entries, expected) in [
        (
            &[(Regular, "sub/Dockerfile", "FROM scratch")][..],
            "the context has no regular file `Dockerfile` at its top",
        ),
        (&[(Directory, "Dockerfile", "")], "the context has no regular file `Dockerfile` at its top"),
        (
            &[(Symlink, "Dockerfile", "x"), (Regular, "x", "FROM scratch")],
            "the context has no regular file `Dockerfile` at its top",
        ),
        (&[(Regular, "Dockerfile", &long)], "the Dockerfile is longer than 1048576 bytes"),
    ] {
        let error = packed(ContextSource::Archive(&archive_of(entries)), 1 << 22).unwrap_err();
        assert_eq!(error.to_string(), expected);
    }
    let mut stored = tempfile::tempfile().unwrap();
    let mut builder = Builder::new(&mut stored);
    let mut header = Header::new_gnu();
    header.set_size(1);
    builder.append_data(&mut header, "Dockerfile", &b"\xff"[..]).unwrap();
    builder.finish().unwrap();
    drop(builder);
    assert_eq!(dockerfile(&stored).unwrap_err().to_string(), "the Dockerfile is not UTF-8");
}

#[test]
fn limit_counts_what_the_tar_takes() {
    let content = "x".repeat(3000);
    let archive = archive_of(&[FROM, (EntryType::Regular, "a", &content)]);
    let (summary, _) = packed(ContextSource::Archive(&archive), 1 << 20).unwrap();
    packed(ContextSource::Archive(&archive), summary.size).unwrap();
    for limit in [summary.size - 1, 3000, 0] {
        let error = packed(ContextSource::Archive(&archive), limit).unwrap_err();
        assert_eq!(error.to_string(), format!("the context has more than {limit} bytes (`context-limit`)"));
    }
    // A file that claims to be huge is refused before anything is read.
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("Dockerfile"), "FROM scratch").unwrap();
    File::create(dir.path().join("big")).unwrap().set_len(1 << 40).unwrap();
    let error = packed(ContextSource::Directory(dir.path()), 1 << 30).unwrap_err();
    assert!(matches!(error, ContextError::Size { .. }), "{error}");
}

#[test]
fn other_files_are_no_context() {
    let text = |bytes: &[u8]| {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        packed(ContextSource::Archive(&file), 1 << 20).unwrap_err().to_string()
    };
    for magic in archive::MAGIC {
        assert_eq!(
            text(&[magic, b"rest"].concat()),
            "the context is compressed; submit the tar itself, or the directory"
        );
    }
    assert_eq!(text(b""), "the context has no regular file `Dockerfile` at its top");
    assert_eq!(text(&b"no tar ".repeat(100)), "the context is not a tar, or it is damaged");
    let whole = archive_of(&[FROM, (EntryType::Regular, "a", &"x".repeat(3000))]);
    whole.set_len(2048).unwrap();
    let error = packed(ContextSource::Archive(&whole), 1 << 20).unwrap_err().to_string();
    assert_eq!(error, "`a` in the context ends early: the tar is truncated, or the file has changed");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_tar_is_refused_or_packed_and_never_leads_out(at in 0_usize..2560, byte: u8) {
        let mut archive = archive_of(&[FROM, (EntryType::Symlink, "a/l", "../b"), (EntryType::Regular, "b", "B")]);
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut archive::rewound(&archive).unwrap(), &mut bytes).unwrap();
        bytes[at] = byte;
        archive::rewound(&archive).unwrap();
        archive.write_all(&bytes).unwrap();
        if let Ok((_, lines)) = packed(ContextSource::Archive(&archive), 1 << 20) {
            prop_assert!(lines.iter().all(|line| !line.contains("/..") && !line.contains("../..")), "{lines:?}");
        }
    }
}
