//! Renames and removals in an overlay on the mount work as on any filesystem, and as in roots of overlay2 and of a plain copy.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, Timespec, Timestamps};
use rustix::io::{Errno, Result};

use support::blob::Blob;
use support::program::{Program, TestMount};
use support::{text, trees};

/// A step in a root: its description, expected result and action. The steps of a table are done in order.
pub(super) type Step = (&'static str, Result<()>, fn(&Path) -> Result<()>);

pub(super) const OK: Result<()> = Ok(());
const ENOENT: Result<()> = Err(Errno::NOENT);
const EEXIST: Result<()> = Err(Errno::EXIST);
const ENOTEMPTY: Result<()> = Err(Errno::NOTEMPTY);

/// Two layers, so that overlay2 merges directories of both and has an opaque directory.
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

/// One root of the same image for each engine, and one in memory.
pub(super) struct Roots {
    // Dropped first: the directories of the other fields cannot be removed below a mount.
    mount: TestMount,
    program: Program,
    image: String,
    pub(super) roots: Vec<(&'static str, PathBuf)>,
    before: Vec<String>,
    since: i64,
}

impl Roots {
    /// Makes the roots of an image of [`TREE`] and more layers.
    pub(super) fn new(more_layers: Vec<Blob>) -> Self {
        let program = Program::new();
        let layers = [vec![text::small()], text::layers(TREE), more_layers].concat();
        let image = text::load(&program, &text::image("over", layers));
        let mount = program.mount();
        let roots = [
            ("erofs", "erofs", "dir"),
            ("erofs-tmpfs", "erofs", "tmpfs:1g"),
            ("fuse", "fuse", "dir"),
            ("fuse-tmpfs", "fuse", "tmpfs:1g"),
            ("overlay2", "overlay2", "dir"),
            ("unpack", "unpack", "dir"),
        ];
        let roots = roots.map(|(id, engine, upper)| {
            let create = ["root", "create", &image, "--engine", engine, "--upper", upper, "--id", id];
            (id, PathBuf::from(program.ok(&create)))
        });
        let before = trees::snapshot(&mount.path(&image));
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs().cast_signed() - 60;
        Self { mount, program, image, roots: roots.into(), before, since }
    }

    /// Does the steps in each root and checks their results.
    #[track_caller]
    pub(super) fn apply(&self, steps: &[Step]) {
        let mut wrong = Vec::new();
        for (engine, root) in &self.roots {
            for (what, expected, step) in steps {
                let step = std::panic::AssertUnwindSafe(|| step(root));
                let found = std::panic::catch_unwind(step)
                    .unwrap_or_else(|_| panic!("{what} on {engine} panicked, see above"));
                if found != *expected {
                    wrong.push(format!("{what} on {engine}: {found:?}, not {expected:?}"));
                }
            }
        }
        assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
    }

    /// Asserts that all roots have the same tree and that the image is unchanged.
    #[track_caller]
    pub(super) fn assert_equal(&self) {
        for (_, root) in &self.roots {
            self.normalize_times(root);
        }
        // If the layers are on different filesystems, overlayfs shows the lower inode number of a copied-up and then linked file
        // under its old name until the next lookup.
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

    /// Sets the mtime of everything changed in the test to one value, because the roots are changed one after the other.
    fn normalize_times(&self, root: &Path) {
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
        // A failed test leaves its roots.
        for (engine, root) in &self.roots {
            if root.exists() {
                let _ = self.program.run(&["root", "remove", "--force", engine]);
            }
        }
    }
}

/// Asserts the content of a file.
pub(super) fn assert_content(path: &Path, content: &str) -> Result<()> {
    let found = fs::read_to_string(path).map_err(|error| Errno::from_io_error(&error).unwrap())?;
    assert_eq!(found, content, "{}", path.display());
    Ok(())
}

/// Asserts the sorted names in a directory.
fn assert_names(path: &Path, names: &[&str]) -> Result<()> {
    let mut actual: Vec<_> = match fs::read_dir(path) {
        Ok(listed) => listed.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect(),
        Err(error) => return Err(Errno::from_io_error(&error).unwrap()),
    };
    actual.sort();
    assert_eq!(actual, names, "{}", path.display());
    Ok(())
}

pub(super) fn write(path: &Path, content: &str) -> Result<()> {
    fs::write(path, content).map_err(|error| Errno::from_io_error(&error).unwrap())
}

fn rename_with(from: PathBuf, to: PathBuf, flags: RenameFlags) -> Result<()> {
    rustix::fs::renameat_with(CWD, from, CWD, to, flags)
}

const RENAMES: &[Step] = &[
    ("rename of a file", OK, |r| rustix::fs::rename(r.join("file"), r.join("dir/moved"))),
    ("the moved file has its content", OK, |r| assert_content(&r.join("dir/moved"), "hello")),
    ("the old name is gone", ENOENT, |r| assert_content(&r.join("file"), "")),
    ("a link to the old name dangles", ENOENT, |r| assert_content(&r.join("link"), "")),
    ("rename back", OK, |r| rustix::fs::rename(r.join("dir/moved"), r.join("file"))),
    ("the link resolves again", OK, |r| assert_content(&r.join("link"), "hello")),
    ("rename over a file of the image", OK, |r| rustix::fs::rename(r.join("other"), r.join("replaced"))),
    ("the file is replaced", OK, |r| assert_content(&r.join("replaced"), "other")),
    ("rename with NOREPLACE over an existing file", EEXIST, |r| {
        rename_with(r.join("file"), r.join("again"), RenameFlags::NOREPLACE)
    }),
    ("rename with NOREPLACE over a removed name", OK, |r| {
        rustix::fs::unlink(r.join("removed"))?;
        rename_with(r.join("replaced"), r.join("removed"), RenameFlags::NOREPLACE)
    }),
    ("exchange of files", OK, |r| rename_with(r.join("file"), r.join("again"), RenameFlags::EXCHANGE)),
    ("the files have exchanged contents", OK, |r| {
        assert_content(&r.join("file"), "first").and(assert_content(&r.join("again"), "hello"))
    }),
    ("exchange of a file and a directory", OK, |r| {
        rename_with(r.join("swapped"), r.join("file"), RenameFlags::EXCHANGE)
    }),
    ("the names have exchanged types", OK, |r| {
        assert_content(&r.join("swapped"), "first").and(assert_names(&r.join("file"), &["a"]))
    }),
    ("rename with WHITEOUT is refused", Err(Errno::INVAL), |r| {
        rename_with(r.join("again"), r.join("new"), RenameFlags::WHITEOUT)
    }),
    ("rename of a directory of one layer", OK, |r| rustix::fs::rename(r.join("single"), r.join("one"))),
    ("the renamed directory has all its entries", OK, |r| {
        assert_content(&r.join("one/sub/deep"), "deep").and(assert_names(&r.join("one"), &["a", "sub"]))
    }),
    ("rename of a directory of two layers", OK, |r| rustix::fs::rename(r.join("dir"), r.join("empty/two"))),
    ("the renamed directory has its remaining entries", OK, |r| {
        assert_names(&r.join("empty/two"), &["a", "c", "sub"])
    }),
    ("second rename of that directory", OK, |r| rustix::fs::rename(r.join("empty/two"), r.join("one/two"))),
    ("a file deep inside it is intact", OK, |r| assert_content(&r.join("one/two/sub/deep"), "deep")),
    ("a new directory under the old name is empty", OK, |r| {
        rustix::fs::mkdir(r.join("dir"), Mode::RWXU).and(assert_names(&r.join("dir"), &[]))
    }),
    ("rename of a directory over an empty one", OK, |r| rustix::fs::rename(r.join("one"), r.join("empty"))),
    ("rename of a directory over a non-empty one", ENOTEMPTY, |r| {
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
    ("rename of a missing file", ENOENT, |r| rustix::fs::rename(r.join("nothing"), r.join("full"))),
    ("rename of a device, a pipe and a link", OK, |r| {
        rustix::fs::rename(r.join("null"), r.join("full/null"))?;
        rustix::fs::rename(r.join("pipe"), r.join("full/pipe"))?;
        rustix::fs::rename(r.join("link"), r.join("full/link"))
    }),
    ("rename of one of several hard links", OK, |r| {
        rustix::fs::rename(r.join("linked-2"), r.join("full/linked"))
    }),
    ("the other links are intact", OK, |r| {
        assert_content(&r.join("linked"), "one").and(assert_content(&r.join("full/linked"), "one"))
    }),
    ("rename out of the root", Err(Errno::XDEV), |r| {
        rustix::fs::rename(r.join("again"), "/tmp/rcx-never-made")
    }),
];

#[test]
fn renames_in_a_root_behave_as_on_any_filesystem() {
    let roots = Roots::new(Vec::new());
    roots.apply(RENAMES);
    roots.assert_equal();
}

const REMOVALS: &[Step] = &[
    ("unlink", OK, |r| rustix::fs::unlink(r.join("again"))),
    ("unlink of a removed file", ENOENT, |r| rustix::fs::unlink(r.join("again"))),
    ("the removed file is not listed", OK, |r| {
        assert!(!fs::read_dir(r).unwrap().any(|entry| entry.unwrap().file_name() == "again"));
        Ok(())
    }),
    ("the removed file is created again", OK, |r| write(&r.join("again"), "second")),
    ("unlink of the new file: whiteout over whiteout", OK, |r| rustix::fs::unlink(r.join("again"))),
    ("the file of the image stays hidden", ENOENT, |r| assert_content(&r.join("again"), "")),
    ("mkdir under the removed name", OK, |r| rustix::fs::mkdir(r.join("again"), Mode::RWXU)),
    ("the new directory is empty", OK, |r| assert_names(&r.join("again"), &[])),
    ("rmdir of the new directory", OK, |r| rustix::fs::rmdir(r.join("again"))),
    ("symlink under the removed name", OK, |r| rustix::fs::symlink("file", r.join("again"))),
    ("the new link resolves", OK, |r| assert_content(&r.join("again"), "hello")),
    ("unlink of one of several hard links", OK, |r| rustix::fs::unlink(r.join("linked"))),
    ("the other links stay", OK, |r| {
        assert_content(&r.join("linked-2"), "one").and(assert_content(&r.join("linked-3"), "one"))
    }),
    ("unlink of a device, a pipe, a link", OK, |r| {
        rustix::fs::unlink(r.join("null"))?;
        rustix::fs::unlink(r.join("pipe"))?;
        rustix::fs::unlink(r.join("link"))
    }),
    ("the target of the link stays", OK, |r| assert_content(&r.join("file"), "hello")),
    ("unlink of a directory", Err(Errno::ISDIR), |r| rustix::fs::unlink(r.join("empty"))),
    ("rmdir of a file", Err(Errno::NOTDIR), |r| rustix::fs::rmdir(r.join("file"))),
    ("rmdir of a non-empty directory", ENOTEMPTY, |r| rustix::fs::rmdir(r.join("emptied"))),
    ("rmdir of an empty directory", OK, |r| rustix::fs::rmdir(r.join("empty"))),
    ("unlink of all entries of a directory", OK, |r| {
        ["a", "b", "c"].iter().try_for_each(|name| rustix::fs::unlink(r.join("emptied").join(name)))
    }),
    ("the directory lists nothing", OK, |r| assert_names(&r.join("emptied"), &[])),
    ("rmdir of the emptied directory", OK, |r| rustix::fs::rmdir(r.join("emptied"))),
    ("mkdir under its name makes an empty directory", OK, |r| {
        rustix::fs::mkdir(r.join("emptied"), Mode::RWXU).and(assert_names(&r.join("emptied"), &[]))
    }),
    ("a new file with the name of a removed one", OK, |r| {
        write(&r.join("emptied/a"), "new").and(assert_names(&r.join("emptied"), &["a"]))
    }),
    ("removal and second mkdir make an empty directory", OK, |r| {
        rustix::fs::unlink(r.join("emptied/a"))?;
        rustix::fs::rmdir(r.join("emptied"))?;
        rustix::fs::mkdir(r.join("emptied"), Mode::RWXU)?;
        assert_names(&r.join("emptied"), &[])
    }),
    ("names hidden by the image stay hidden", ENOENT, |r| {
        assert_content(&r.join("full/below"), "").and(assert_content(&r.join("dir/b"), ""))
    }),
    ("hidden names can be created", OK, |r| {
        write(&r.join("full/below"), "of the root").and(write(&r.join("dir/b"), "of the root"))
    }),
    ("hidden names can be removed again", OK, |r| {
        rustix::fs::unlink(r.join("dir/b")).and(assert_names(&r.join("dir"), &["a", "c", "sub"]))
    }),
    ("removal of a whole tree", OK, |r| {
        fs::remove_dir_all(r.join("single")).map_err(|error| Errno::from_io_error(&error).unwrap())
    }),
    ("a file under the name of the tree", OK, |r| {
        write(&r.join("single"), "a file").and(assert_content(&r.join("single"), "a file"))
    }),
    ("mknod of a whiteout device is refused", Err(Errno::PERM), |r| {
        rustix::fs::mknodat(CWD, r.join("whiteout"), FileType::CharacterDevice, Mode::RWXU, 0)
    }),
    ("a name that looks like a whiteout marker is a plain name", OK, |r| {
        write(&r.join(".wh.file"), "x").and(assert_content(&r.join("file"), "hello"))
    }),
    ("a name that looks like an opaque marker is a plain name", OK, |r| {
        write(&r.join("dir/.wh..wh..opq"), "x").and(assert_content(&r.join("dir/a"), "a"))
    }),
    ("an unnamed file (O_TMPFILE) is linked", OK, |r| {
        let flags = OFlags::WRONLY | OFlags::TMPFILE | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::open(r.join("dir"), flags, Mode::RUSR | Mode::WUSR)?);
        rustix::io::write(&file, b"unnamed")?;
        assert_names(&r.join("dir"), &[".wh..wh..opq", "a", "c", "sub"])?;
        let itself = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        rustix::fs::linkat(CWD, itself, CWD, r.join("dir/named"), AtFlags::SYMLINK_FOLLOW)
    }),
    ("the linked file has its content", OK, |r| assert_content(&r.join("dir/named"), "unnamed")),
];

#[test]
fn removals_in_a_root_never_reveal_lower_entries() {
    let roots = Roots::new(Vec::new());
    roots.apply(REMOVALS);
    roots.assert_equal();
}
