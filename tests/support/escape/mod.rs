//! Attempts of an image to write, read or change something outside of its own tree.
//!
//! Each is a row of `attempts`, with a name that says what it does. It goes through `load` and `pull`, `unpack`, the mount,
//! the unpacking of layers for overlay2, and roots of every engine in `privileged/escape`; through `run` in `privileged/run/hostile.rs`; and those that
//! depend on more than the tree go through the stand-in for isolate, in `privileged/isolate/attempts_images.rs`. Two canaries stand where
//! the attempts aim: one beside whatever is made, and one far from it. What an attempt makes must be inside the tree
//! instead, the same in every engine.

pub mod attempts;

pub use attempts::{Attempt, about_the_sandbox, all, kept};

use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

use crate::case::Case;
use crate::text;

/// The canaries that attempts aim at.
#[derive(Debug, Clone, Copy)]
pub struct Aim<'a> {
    /// The absolute path of a canary.
    pub far: &'a str,
    /// The last component of a canary that stands a few directories above the written tree.
    pub near: &'a str,
}

impl Attempt {
    /// Makes the image of the attempt.
    pub fn image(&self, aim: Aim<'_>) -> Case {
        text::image(self.name, text::layers(&aim.put_into(self.layers)))
    }

    /// The same with a busybox below it, or above it where the attempt empties the root.
    pub fn image_with_programs(&self, aim: Aim<'_>) -> Case {
        let mut image = self.image(aim);
        let place = if self.layers.contains(" o / ") { image.layers.len() } else { 0 };
        image.layers.insert(place, text::small());
        image
    }
}

/// Numbers of `..` that are tried for the near canary: at least as many as there are directories between it and a file in an
/// unpacked layer.
const CLIMBS: std::ops::RangeInclusive<usize> = 1..=7;

impl Aim<'_> {
    /// Expands placeholders. A line with `{near}` or `{n}` becomes one line for each number of [`CLIMBS`]: `{near}` is the canary's
    /// name after that many `..`, `{n}` the number.
    fn put_into(self, text: &str) -> String {
        let up = format!("{}{}", "../".repeat(20), &self.far[1..]);
        let mut out = String::new();
        for line in text.lines() {
            let line = line.replace("{far}", self.far).replace("{up}", &up);
            if line.contains("{n") {
                for climb in CLIMBS {
                    let near = format!("{}{}", "../".repeat(climb), self.near);
                    let line = line.replace("{near}", &near).replace("{n}", &climb.to_string());
                    out.extend([&line, "\n"]);
                }
            } else {
                out.extend([&line, "\n"]);
            }
        }
        out
    }

    /// Expands the placeholders of a path and makes it relative to the root of a tree.
    pub fn inside(self, path: &str) -> String {
        let path = path.replace("{far}", self.far).replace("{near}", self.near).replace("{n}", "7");
        path.trim_start_matches('/').to_owned()
    }
}

/// Whether a path exists inside a root, without following symlinks.
pub fn is_inside(root: &Path, path: &str) -> bool {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, root, flags | OFlags::DIRECTORY, Mode::empty()).unwrap();
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    rustix::fs::openat2(root, path, flags, Mode::empty(), resolve).is_ok()
}

/// A shell script that reads everything in the root of an image, and writes to it and through it.
///
/// It leaves out `/bin` with its own program, and the filesystems that the sandbox mounts.
pub const LOOK_AROUND: &str = r#"
busybox find / \( -path /bin -o -path /proc -o -path /dev -o -path /sys \) -prune -o \( -type f -o -type l \) -size -16 \
    -exec sh -c '
        [ -p "$0" ] && exit
        busybox head -c 4096 "$0"; busybox head -c 4096 "$0/secret"; busybox ls -n "$0/"
        echo planted >>"$0"; echo planted >"$0/planted"; busybox mkdir "$0/made"
        busybox chmod 700 "$0"; busybox touch "$0"
        busybox ln "$0/secret" "$0/linked-again"; busybox mv "$0/link" "$0/moved"; busybox rm -rf "$0/dir"
        "$0/program"; busybox chroot "$0" /program; cd "$0" && busybox cat secret ../*/secret
    ' {} \; 2>/dev/null
for place in /proc/self/root /proc/1/root /proc/self/cwd /proc/self/fd/* /dev/fd/*; do
    busybox find $place/var/tmp $place/tmp -name secret -exec busybox cat {} \; 2>/dev/null
done
echo looked around
"#;
