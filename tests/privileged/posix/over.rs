//! An overlay on the mount: what programs do to names in a root does what it says, and the same as in a root of overlay2
//! or of a plain copy.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, Timespec, Timestamps};
use rustix::io::{Errno, Result};

use support::blob::Blob;
use support::program::{Program, TestMount};
use support::{text, trees};

/// What is done in a root, in the order of a table: what it is, what must come of it, and how it is done.
pub(super) type Step = (&'static str, Result<()>, fn(&Path) -> Result<()>);

pub(super) const DONE: Result<()> = Ok(());
const ENOENT: Result<()> = Err(Errno::NOENT);
const EEXIST: Result<()> = Err(Errno::EXIST);
const ENOTEMPTY: Result<()> = Err(Errno::NOTEMPTY);

/// Two layers, so that in overlay2 directories are merged of two, and one of them replaces the other.
const TREE: &str = "
    f file hello xattr.user.one=1 xattr.trusted.two=2
    f other other
    f replaced replaced mode=640 uid=5
    f removed removed
    f again first
    f linked one
    h linked-2 linked
    h linked-3 linked
    l link file
    c null 1:3
    p pipe
    f program #!/bin/sh\\necho\\x20ran\\n mode=4755
    d dir mtime=7
    f dir/a a
    f dir/b b
    d dir/sub
    f dir/sub/deep deep
    d single
    f single/a a
    d single/sub
    f single/sub/deep deep
    d empty
    d full
    f full/below below
    d emptied mode=750 uid=7
    f emptied/a a
    f emptied/b b
    d swapped
    f swapped/a a
    ---
    w dir/b
    f dir/c c
    o full
    f full/above above
    f emptied/c c
";

/// Roots of one image, of each engine.
pub(super) struct Roots {
    // Dropped first: what follows cannot be removed below a mount.
    mount: TestMount,
    program: Program,
    image: String,
    pub(super) roots: Vec<(&'static str, PathBuf)>,
    before: Vec<String>,
    since: i64,
}

impl Roots {
    /// With further layers.
    pub(super) fn new(further: Vec<Blob>) -> Self {
        let program = Program::new();
        let layers = [vec![text::small()], text::layers(TREE), further].concat();
        let image = text::load(&program, &text::image("over", layers));
        let mount = program.mount();
        let roots = ["fuse", "overlay2", "unpack"].map(|engine| {
            let create = ["root", "create", &image, "--engine", engine, "--id", engine];
            (engine, PathBuf::from(program.ok(&create)))
        });
        let before = trees::snapshot(&mount.path(&image));
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs().cast_signed() - 60;
        Self { mount, program, image, roots: roots.into(), before, since }
    }

    /// Takes the steps in each root.
    #[track_caller]
    pub(super) fn take(&self, steps: &[Step]) {
        let mut wrong = Vec::new();
        for (engine, root) in &self.roots {
            for (what, expected, step) in steps {
                let step = std::panic::AssertUnwindSafe(|| step(root));
                let found = std::panic::catch_unwind(step)
                    .unwrap_or_else(|_| panic!("{what} on {engine}: what is there is above"));
                if found != *expected {
                    wrong.push(format!("{what} on {engine}: {found:?}, not {expected:?}"));
                }
            }
        }
        assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
    }

    /// Demands that all roots have the same tree now, and that the image is as it was.
    #[track_caller]
    pub(super) fn agree(&self) {
        for (_, root) in &self.roots {
            self.settle(root);
        }
        // Of a file that was copied up and then linked, overlayfs shows the lower number under the old name until it is looked up
        // anew, where the layers are on filesystems of two kinds.
        fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
        let (_, ours) = &self.roots[0];
        for (_, theirs) in &self.roots[1..] {
            trees::assert_equal_but_directory_links(ours, theirs, 30);
        }
        assert!(trees::snapshot(&self.mount.path(&self.image)) == self.before, "the image has changed");
        for (engine, _) in &self.roots {
            self.program.ok(&["root", "remove", engine]);
        }
        self.program.ok(&["verify", "--deep"]);
    }

    /// Gives what was changed in the test one time, since no two roots are changed at once.
    fn settle(&self, root: &Path) {
        let time = Timespec { tv_sec: 1, tv_nsec: 0 };
        let times = Timestamps { last_access: time, last_modification: time };
        for path in trees::paths(root).into_iter().rev() {
            let path = root.join(path);
            if rustix::fs::lstat(&path).unwrap().st_mtime >= self.since {
                rustix::fs::utimensat(CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
            }
        }
    }
}

impl Drop for Roots {
    fn drop(&mut self) {
        // Of a test that failed; else they are gone.
        for (engine, root) in &self.roots {
            if root.exists() {
                let _ = self.program.run(&["root", "remove", "--force", engine]);
            }
        }
    }
}

/// The content of a file must be this.
pub(super) fn holds(path: &Path, content: &str) -> Result<()> {
    let found = fs::read_to_string(path).map_err(|error| Errno::from_io_error(&error).unwrap())?;
    assert_eq!(found, content, "{}", path.display());
    Ok(())
}

/// A directory must list these, sorted.
fn lists(path: &Path, names: &[&str]) -> Result<()> {
    let mut found: Vec<_> = match fs::read_dir(path) {
        Ok(listed) => listed.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect(),
        Err(error) => return Err(Errno::from_io_error(&error).unwrap()),
    };
    found.sort();
    assert_eq!(found, names, "{}", path.display());
    Ok(())
}

pub(super) fn write(path: &Path, content: &str) -> Result<()> {
    fs::write(path, content).map_err(|error| Errno::from_io_error(&error).unwrap())
}

fn rename_with(from: PathBuf, to: PathBuf, flags: RenameFlags) -> Result<()> {
    rustix::fs::renameat_with(CWD, from, CWD, to, flags)
}

const RENAMES: &[Step] = &[
    ("rename of a file", DONE, |r| rustix::fs::rename(r.join("file"), r.join("dir/moved"))),
    ("what was moved has what it had", DONE, |r| holds(&r.join("dir/moved"), "hello")),
    ("the old name is gone", ENOENT, |r| holds(&r.join("file"), "")),
    ("a link to the old name leads nowhere", ENOENT, |r| holds(&r.join("link"), "")),
    ("rename back", DONE, |r| rustix::fs::rename(r.join("dir/moved"), r.join("file"))),
    ("the link leads there again", DONE, |r| holds(&r.join("link"), "hello")),
    ("rename over a file of the image", DONE, |r| rustix::fs::rename(r.join("other"), r.join("replaced"))),
    ("which is replaced", DONE, |r| holds(&r.join("replaced"), "other")),
    ("rename that must replace nothing", EEXIST, |r| {
        rename_with(r.join("file"), r.join("again"), RenameFlags::NOREPLACE)
    }),
    ("rename over a removed name that must replace nothing", DONE, |r| {
        rustix::fs::unlink(r.join("removed"))?;
        rename_with(r.join("replaced"), r.join("removed"), RenameFlags::NOREPLACE)
    }),
    ("exchange of files", DONE, |r| rename_with(r.join("file"), r.join("again"), RenameFlags::EXCHANGE)),
    ("which have each other's", DONE, |r| {
        holds(&r.join("file"), "first").and(holds(&r.join("again"), "hello"))
    }),
    ("exchange of a file and a directory", DONE, |r| {
        rename_with(r.join("swapped"), r.join("file"), RenameFlags::EXCHANGE)
    }),
    ("which have each other's kind", DONE, |r| {
        holds(&r.join("swapped"), "first").and(lists(&r.join("file"), &["a"]))
    }),
    ("a whiteout is not for programs to leave", Err(Errno::INVAL), |r| {
        rename_with(r.join("again"), r.join("new"), RenameFlags::WHITEOUT)
    }),
    ("rename of a directory of one layer", DONE, |r| rustix::fs::rename(r.join("single"), r.join("one"))),
    ("with all that is in it", DONE, |r| {
        holds(&r.join("one/sub/deep"), "deep").and(lists(&r.join("one"), &["a", "sub"]))
    }),
    ("rename of a directory of two layers", DONE, |r| rustix::fs::rename(r.join("dir"), r.join("empty/two"))),
    ("with what is left in it", DONE, |r| lists(&r.join("empty/two"), &["a", "c", "sub"])),
    ("and again", DONE, |r| rustix::fs::rename(r.join("empty/two"), r.join("one/two"))),
    ("deep inside", DONE, |r| holds(&r.join("one/two/sub/deep"), "deep")),
    ("a new directory of the old name is new", DONE, |r| {
        rustix::fs::mkdir(r.join("dir"), Mode::RWXU).and(lists(&r.join("dir"), &[]))
    }),
    ("rename of a directory over an empty one", DONE, |r| rustix::fs::rename(r.join("one"), r.join("empty"))),
    ("rename of a directory over one that is not", ENOTEMPTY, |r| {
        rustix::fs::rename(r.join("empty"), r.join("full"))
    }),
    ("rename of a directory over a file", Err(Errno::NOTDIR), |r| {
        rustix::fs::rename(r.join("full"), r.join("again"))
    }),
    ("rename of a file over a directory", Err(Errno::ISDIR), |r| {
        rustix::fs::rename(r.join("again"), r.join("full"))
    }),
    ("rename of a directory into itself", Err(Errno::INVAL), |r| {
        rustix::fs::rename(r.join("full"), r.join("full/sub"))
    }),
    ("rename of nothing", ENOENT, |r| rustix::fs::rename(r.join("nothing"), r.join("full"))),
    ("rename of a device, a pipe and a link", DONE, |r| {
        rustix::fs::rename(r.join("null"), r.join("full/null"))?;
        rustix::fs::rename(r.join("pipe"), r.join("full/pipe"))?;
        rustix::fs::rename(r.join("link"), r.join("full/link"))
    }),
    ("rename of one name of several", DONE, |r| {
        rustix::fs::rename(r.join("linked-2"), r.join("full/linked"))
    }),
    ("the others have what they had", DONE, |r| {
        holds(&r.join("linked"), "one").and(holds(&r.join("full/linked"), "one"))
    }),
    ("rename out of the root", Err(Errno::XDEV), |r| {
        rustix::fs::rename(r.join("again"), "/tmp/rcx-never-made")
    }),
];

#[test]
fn renames_in_a_root_behave_as_on_any_filesystem() {
    let roots = Roots::new(Vec::new());
    roots.take(RENAMES);
    roots.agree();
}

const REMOVALS: &[Step] = &[
    ("unlink", DONE, |r| rustix::fs::unlink(r.join("again"))),
    ("unlink of what is gone", ENOENT, |r| rustix::fs::unlink(r.join("again"))),
    ("and is not listed", DONE, |r| {
        assert!(!fs::read_dir(r).unwrap().any(|entry| entry.unwrap().file_name() == "again"));
        Ok(())
    }),
    ("made anew", DONE, |r| write(&r.join("again"), "second")),
    ("unlink of it, whiteout over whiteout", DONE, |r| rustix::fs::unlink(r.join("again"))),
    ("which shows nothing of the image", ENOENT, |r| holds(&r.join("again"), "")),
    ("a third time, as a directory", DONE, |r| rustix::fs::mkdir(r.join("again"), Mode::RWXU)),
    ("which is empty", DONE, |r| lists(&r.join("again"), &[])),
    ("and goes", DONE, |r| rustix::fs::rmdir(r.join("again"))),
    ("a fourth time, as a link", DONE, |r| rustix::fs::symlink("file", r.join("again"))),
    ("which leads on", DONE, |r| holds(&r.join("again"), "hello")),
    ("unlink of a name of several", DONE, |r| rustix::fs::unlink(r.join("linked"))),
    ("the others stay", DONE, |r| holds(&r.join("linked-2"), "one").and(holds(&r.join("linked-3"), "one"))),
    ("unlink of a device, a pipe, a link", DONE, |r| {
        rustix::fs::unlink(r.join("null"))?;
        rustix::fs::unlink(r.join("pipe"))?;
        rustix::fs::unlink(r.join("link"))
    }),
    ("what the link led to stays", DONE, |r| holds(&r.join("file"), "hello")),
    ("unlink of a directory", Err(Errno::ISDIR), |r| rustix::fs::unlink(r.join("empty"))),
    ("rmdir of a file", Err(Errno::NOTDIR), |r| rustix::fs::rmdir(r.join("file"))),
    ("rmdir of what is not empty", ENOTEMPTY, |r| rustix::fs::rmdir(r.join("emptied"))),
    ("rmdir of what is empty", DONE, |r| rustix::fs::rmdir(r.join("empty"))),
    ("emptied", DONE, |r| {
        ["a", "b", "c"].iter().try_for_each(|name| rustix::fs::unlink(r.join("emptied").join(name)))
    }),
    ("it lists nothing", DONE, |r| lists(&r.join("emptied"), &[])),
    ("and goes now", DONE, |r| rustix::fs::rmdir(r.join("emptied"))),
    ("made again, it is new", DONE, |r| {
        rustix::fs::mkdir(r.join("emptied"), Mode::RWXU).and(lists(&r.join("emptied"), &[]))
    }),
    ("with a file of an old name", DONE, |r| {
        write(&r.join("emptied/a"), "new").and(lists(&r.join("emptied"), &["a"]))
    }),
    ("gone and made once more", DONE, |r| {
        rustix::fs::unlink(r.join("emptied/a"))?;
        rustix::fs::rmdir(r.join("emptied"))?;
        rustix::fs::mkdir(r.join("emptied"), Mode::RWXU)?;
        lists(&r.join("emptied"), &[])
    }),
    ("what the image itself hides stays hidden", ENOENT, |r| {
        holds(&r.join("full/below"), "").and(holds(&r.join("dir/b"), ""))
    }),
    ("and can be made", DONE, |r| {
        write(&r.join("full/below"), "of the root").and(write(&r.join("dir/b"), "of the root"))
    }),
    ("and removed", DONE, |r| {
        rustix::fs::unlink(r.join("dir/b")).and(lists(&r.join("dir"), &["a", "c", "sub"]))
    }),
    ("all of a tree", DONE, |r| {
        fs::remove_dir_all(r.join("single")).map_err(|error| Errno::from_io_error(&error).unwrap())
    }),
    ("a file in its place", DONE, |r| {
        write(&r.join("single"), "a file").and(holds(&r.join("single"), "a file"))
    }),
    ("a whiteout's device is not to be made", Err(Errno::PERM), |r| {
        rustix::fs::mknodat(CWD, r.join("whiteout"), FileType::CharacterDevice, Mode::RWXU, 0)
    }),
    ("a name like a marker is a name", DONE, |r| {
        write(&r.join(".wh.file"), "x").and(holds(&r.join("file"), "hello"))
    }),
    ("and one like an opaque marker", DONE, |r| {
        write(&r.join("dir/.wh..wh..opq"), "x").and(holds(&r.join("dir/a"), "a"))
    }),
    ("a file without a name", DONE, |r| {
        let flags = OFlags::WRONLY | OFlags::TMPFILE | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::open(r.join("dir"), flags, Mode::RUSR | Mode::WUSR)?);
        rustix::io::write(&file, b"unnamed")?;
        lists(&r.join("dir"), &[".wh..wh..opq", "a", "c", "sub"])?;
        let itself = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        rustix::fs::linkat(CWD, itself, CWD, r.join("dir/named"), AtFlags::SYMLINK_FOLLOW)
    }),
    ("that gets one", DONE, |r| holds(&r.join("dir/named"), "unnamed")),
];

#[test]
fn removals_in_a_root_never_reveal_lower_entries() {
    let roots = Roots::new(Vec::new());
    roots.take(REMOVALS);
    roots.agree();
}
