//! Permissions to read, list, search and execute, by mode, owner and group.

use std::fs;
use std::path::Path;
use std::process::Command;

use rustix::fs::{Access, AtFlags, CWD, Mode, OFlags};
use rustix::io::{Errno, Result};

use super::{GROUP, MountedImage, STATIC, USER, as_user};

const ALLOWED: Result<()> = Ok(());
const DENIED: Result<()> = Err(Errno::ACCESS);
const ROOT: u32 = 0;
const MEMBER: &[u32] = &[GROUP];

fn open(path: &Path) -> Result<()> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty()).map(drop)
}

/// Reads a file, or lists a directory.
fn read(path: &Path) -> Result<()> {
    let read = if path.is_dir() {
        fs::read_dir(path).map(|names| assert!(names.count() > 0))
    } else {
        fs::read(path).map(drop)
    };
    read.map_err(|error| Errno::from_io_error(&error).unwrap())
}

fn stat(path: &Path) -> Result<()> {
    rustix::fs::lstat(path).map(drop)
}

fn access(path: &Path, access: Access) -> Result<()> {
    // Checked with the effective IDs, like open.
    rustix::fs::accessat(CWD, path, access, AtFlags::EACCESS)
}

/// Path, user, supplementary groups, the result of a read (or listing), and the result of an execute (or search) check.
type Right = (&'static str, u32, &'static [u32], Result<()>, Result<()>);

const RIGHTS: &[Right] = &[
    ("file", USER, &[], ALLOWED, DENIED),
    ("private", USER, &[], DENIED, DENIED),
    ("private", ROOT, &[], ALLOWED, DENIED),
    ("own", USER, &[], ALLOWED, DENIED),
    // The owner's bits apply to the owner even if the bits for others grant more.
    ("own-but-closed", USER, &[], DENIED, DENIED),
    ("own-but-closed", USER + 5, &[], ALLOWED, DENIED),
    ("own-but-closed", ROOT, &[], ALLOWED, DENIED),
    ("group", USER, &[], DENIED, DENIED),
    ("group", USER, MEMBER, ALLOWED, DENIED),
    ("group", GROUP, &[], ALLOWED, DENIED),
    // The group's bits apply to its members in the same way.
    ("group-but-closed", USER, MEMBER, DENIED, DENIED),
    ("group-but-closed", USER, &[], ALLOWED, DENIED),
    ("program", USER, &[], ALLOWED, ALLOWED),
    ("program-for-its-group", USER, &[], DENIED, DENIED),
    ("program-for-its-group", USER, MEMBER, DENIED, ALLOWED),
    ("program-for-its-group", ROOT, &[], ALLOWED, ALLOWED),
    ("dir", USER, &[], ALLOWED, ALLOWED),
    ("dir/inner", USER, &[], ALLOWED, DENIED),
    ("through", USER, &[], DENIED, ALLOWED),
    ("through/known", USER, &[], ALLOWED, DENIED),
    ("through", ROOT, &[], ALLOWED, ALLOWED),
    ("listed", USER, &[], ALLOWED, DENIED),
    ("listed/known", USER, &[], DENIED, DENIED),
    ("listed/known", ROOT, &[], ALLOWED, DENIED),
    ("closed", USER, &[], DENIED, DENIED),
    ("closed/known", USER, &[], DENIED, DENIED),
    ("closed/known", ROOT, &[], ALLOWED, DENIED),
    ("own-dir", USER, &[], ALLOWED, ALLOWED),
    ("own-dir/known", USER, &[], ALLOWED, DENIED),
    ("own-dir/known", USER + 5, &[], DENIED, DENIED),
    ("group-dir", USER, &[], DENIED, DENIED),
    ("group-dir/known", USER, MEMBER, ALLOWED, DENIED),
    ("sticky/file", USER, &[], ALLOWED, DENIED),
    // The target of a link decides.
    ("link", USER, &[], ALLOWED, DENIED),
    ("link-to-dir", USER, &[], ALLOWED, ALLOWED),
];

#[test]
fn modes_owners_and_groups_decide_who_reads_and_runs() {
    let image = MountedImage::new();
    let disk = image.on_tmpfs();
    let (ours, theirs) = (&image.root, disk.path());
    let mut wrong = Vec::new();
    for (path, user, groups, may_read, may_run) in RIGHTS {
        for (which, root) in [("the mount", ours.as_path()), ("tmpfs", theirs)] {
            let path = root.join(path);
            let found = as_user(*user, groups, || {
                (read(&path), open(&path), access(&path, Access::READ_OK), access(&path, Access::EXEC_OK))
            });
            if found != (*may_read, *may_read, *may_read, *may_run) {
                wrong.push(format!("{} by {user} {groups:?} on {which}: {found:?}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
    image.mount.stop();
}

#[test]
fn directory_without_search_permission_hides_its_entries_even_when_cached() {
    let image = MountedImage::new();
    let disk = image.on_tmpfs();
    for root in [&image.root, disk.path()] {
        // Root looks the names up first, so that the kernel has them in its cache.
        for path in ["closed/known", "listed/known", "closed/missing"] {
            let _ = stat(&root.join(path));
        }
        as_user(USER, &[], || {
            assert_eq!(stat(&root.join("closed/known")), DENIED);
            assert_eq!(stat(&root.join("closed/missing")), DENIED);
            assert_eq!(stat(&root.join("closed/../file")), DENIED);
            assert_eq!(stat(&root.join("listed/known")), DENIED);
            assert_eq!(stat(&root.join("closed")), ALLOWED);
            let names: Vec<_> =
                fs::read_dir(root.join("listed")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            assert_eq!(names, ["known"]);
            assert_eq!(stat(&root.join("through/known")), ALLOWED);
            assert_eq!(stat(&root.join("through/missing")), Err(Errno::NOENT));
        });
    }
    image.mount.stop();
}

#[test]
fn access_checks_use_the_real_user_and_report_erofs_for_writes() {
    let image = MountedImage::new();
    let disk = image.on_tmpfs();
    for root in [&image.root, disk.path()] {
        for (path, mode, expected) in [
            ("file", Access::EXISTS, ALLOWED),
            ("missing", Access::EXISTS, Err(Errno::NOENT)),
            ("dangling", Access::EXISTS, Err(Errno::NOENT)),
            ("loop", Access::EXISTS, Err(Errno::LOOP)),
            ("file/x", Access::EXISTS, Err(Errno::NOTDIR)),
            ("file", Access::WRITE_OK, Err(Errno::ROFS)),
            ("dir", Access::WRITE_OK, Err(Errno::ROFS)),
            ("file", Access::READ_OK | Access::WRITE_OK, Err(Errno::ROFS)),
            // Writes to a device or a pipe do not go to the filesystem.
            ("null", Access::WRITE_OK, ALLOWED),
            ("pipe", Access::WRITE_OK, ALLOWED),
        ] {
            assert_eq!(
                rustix::fs::access(root.join(path), mode),
                expected,
                "{path} {mode:?} in {}",
                root.display()
            );
        }
        as_user(USER, &[], || {
            assert_eq!(rustix::fs::access(root.join("file"), Access::WRITE_OK), Err(Errno::ROFS));
            assert_eq!(rustix::fs::access(root.join("private"), Access::READ_OK), DENIED);
        });
    }
    image.mount.stop();
}

/// Runs a program as a user. Returns its output, or the errno of the failed exec.
fn run_as(user: u32, groups: &[u32], program: &Path, argument: &str) -> std::result::Result<String, Errno> {
    let spawned = as_user(user, groups, || Command::new(program).arg(argument).output());
    let output = spawned.map_err(|error| Errno::from_io_error(&error).unwrap())?;
    Ok(String::from_utf8(output.stdout).unwrap())
}

#[test]
fn programs_run_if_permitted_and_fail_with_the_same_errno_as_on_tmpfs() {
    let image = MountedImage::new();
    let disk = image.on_tmpfs();
    for root in [&image.root, disk.path()] {
        let script = root.join("program");
        let printed = format!("ran {}\n", script.display());
        assert_eq!(run_as(ROOT, &[], &script, "x").unwrap(), printed);
        assert_eq!(run_as(USER, &[], &script, "x").unwrap(), printed);
        // A static program of the image.
        assert_eq!(
            run_as(USER, &[], &root.join(STATIC), "--list").unwrap().lines().find(|applet| *applet == "cat"),
            Some("cat")
        );
        for (path, user, groups, errno) in [
            ("file", ROOT, &[][..], Errno::ACCESS),
            ("dir", ROOT, &[], Errno::ACCESS),
            ("pipe", ROOT, &[], Errno::ACCESS),
            ("null", ROOT, &[], Errno::ACCESS),
            ("missing", ROOT, &[], Errno::NOENT),
            ("dangling", ROOT, &[], Errno::NOENT),
            ("loop", ROOT, &[], Errno::LOOP),
            ("program/x", ROOT, &[], Errno::NOTDIR),
            ("program-of-no-interpreter", ROOT, &[], Errno::NOENT),
            ("not-a-program", ROOT, &[], Errno::NOEXEC),
            ("program-for-its-group", USER, &[], Errno::ACCESS),
            ("closed/known", USER, &[], Errno::ACCESS),
        ] {
            assert_eq!(
                run_as(user, groups, &root.join(path), "x"),
                Err(errno),
                "{path} by {user} in {}",
                root.display()
            );
        }
    }
    image.mount.stop();
}
