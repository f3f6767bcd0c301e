//! POSIX and Linux semantics of a read-only filesystem, tested on the mount, and of overlays of it, tested on roots.
//!
//! Where possible, the same calls are made on a read-only tmpfs with the same tree: both must return the errno of the table.

#![allow(clippy::unwrap_used, reason = "these are tests: a panic is how they fail")]

mod attributes;
mod changes;
mod files;
mod names;
mod over;
mod over_copy_up;
mod permissions;

use std::path::{Path, PathBuf};

use rustix::fs::{Gid, Uid};

use support::blob::Blob;
use support::images::run;
use support::layers::{EntryKind, Line};
use support::program::{Program, TestMount};
use support::text;
use support::tmpfs::Tmpfs;

/// A user other than root, who has a group with the same number.
const USER: u32 = 12_345;
/// A supplementary group of that user.
const GROUP: u32 = 12_346;

/// The image of these tests.
const TREE: &str = "
    d / mode=755 mtime=1000
    f file hello mtime=1234567890.123456789 xattr.user.one=1 xattr.user.two=22 xattr.trusted.three=333
    f empty
    f private secret mode=600
    f own secret mode=600 uid=12345 gid=12345
    f group secret mode=640 gid=12346
    f own-but-closed secret mode=044 uid=12345
    f group-but-closed secret mode=604 gid=12346
    f linked one
    h other-name linked
    f program #!/bin/sh\\necho\\x20ran\\x20$0\\n mode=755
    f program-of-no-interpreter #!/nonexistent/interpreter\\n mode=755
    f program-for-its-group #!/bin/sh\\necho\\x20ran\\n mode=710 gid=12346
    f not-a-program \\x00\\x01\\x02 mode=755
    d dir mtime=5.000000006
    f dir/inner inner
    d dir/sub
    d empty-dir
    d through mode=711
    f through/known known
    d listed mode=744
    f listed/known known
    d closed mode=700
    f closed/known known
    d own-dir mode=700 uid=12345
    f own-dir/known known
    d group-dir mode=750 gid=12346
    f group-dir/known known
    d sticky mode=1777
    f sticky/file x mode=666
    l link file
    l link-to-dir dir
    l dangling nowhere
    l loop loop
    l circle-a circle-b
    l circle-b circle-a
    l absolute /etc
    l up ../../..
    c null 1:3 mode=666
    b disk 254:0 mode=666
    p pipe mode=666
";

/// Length of [`BIG`]: more than one span, and not a multiple of the page size.
const BIG_LENGTH: usize = (1 << 20) + 12_345;
/// A file whose pages all differ.
const BIG: &str = "big";
/// A static busybox.
const STATIC: &str = "bin/busybox";

/// The content of [`BIG`].
fn big() -> Vec<u8> {
    (0..BIG_LENGTH as u64)
        .flat_map(|number| (number * 2_654_435_761).to_le_bytes())
        .take(BIG_LENGTH)
        .collect()
}

fn image_layers() -> Vec<Blob> {
    let big = Line::new(BIG.as_bytes(), EntryKind::File(big()));
    // Data at 1 MiB and at 3 MiB, of 4 MiB.
    let sparse = "m S holes format=gnu map=1048576:4096,3145728:4096,4194304:0 realsize=4194304 data=";
    let data = format!("{sparse}{}{}", "a".repeat(4096), "b".repeat(4096));
    [vec![text::small()], text::layers(TREE), vec![text::layer_of(&[big])], text::layers(&data)].concat()
}

/// The image, mounted.
struct MountedImage {
    // Dropped first: the directories of the other fields cannot be removed while they hold a mount.
    mount: TestMount,
    program: Program,
    name: String,
    /// The directory of the image in the mount.
    root: PathBuf,
}

impl MountedImage {
    fn new() -> Self {
        let program = Program::new();
        let name = text::load(&program, &text::image("posix", image_layers()));
        let mount = program.mount();
        let root = mount.path(&name);
        Self { mount, program, name, root }
    }

    /// The same tree on a tmpfs, read-only like the mount.
    fn on_tmpfs(&self) -> Tmpfs {
        let disk = Tmpfs::new("64m");
        let path = disk.path().to_str().unwrap();
        self.program.ok(&["unpack", "--preserve-setuid", &self.name, path]);
        run("mount", &["-o", "remount,ro,nosuid,nodev", path]);
        disk
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }
}

/// Runs `work` in a thread with another user, other groups and no capabilities.
fn as_user<T: Send>(user: u32, groups: &[u32], work: impl FnOnce() -> T + Send) -> T {
    let groups: Vec<Gid> = groups.iter().map(|group| Gid::from_raw(*group)).collect();
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(user));
            rustix::thread::set_thread_groups(&groups).unwrap();
            rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
            rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Opens a file with `O_PATH`.
fn open_path(path: &Path) -> rustix::fd::OwnedFd {
    use rustix::fs::{Mode, OFlags};
    rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap()
}
