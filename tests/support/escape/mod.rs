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

/// Where attempts aim at.
#[derive(Debug, Clone, Copy)]
pub struct Aim<'a> {
    /// The absolute path of a canary.
    pub far: &'a str,
    /// The last name of a canary that stands a few directories above whatever is made.
    pub near: &'a str,
}

impl Attempt {
    /// The attempt's image.
    pub fn image(&self, aim: Aim<'_>) -> Case {
        text::image(self.name, text::layers(&aim.put_into(self.layers)))
    }

    /// The same with programs in it: on the small image, or below it where the attempt empties the root.
    pub fn image_with_programs(&self, aim: Aim<'_>) -> Case {
        let mut image = self.image(aim);
        let place = if self.layers.contains(" o / ") { image.layers.len() } else { 0 };
        image.layers.insert(place, text::small());
        image
    }
}

/// Directories that an aim near by is tried above: as many as lie between a canary beside the store and a file in an
/// unpacked layer, and some more.
const CLIMBS: std::ops::RangeInclusive<usize> = 1..=7;

impl Aim<'_> {
    /// Puts the aims into a text. A line with `{near}` or `{n}` stands for several, with ever
    /// more `..` in front of the one and the number of them for the other.
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

    /// A path that is inside of a tree.
    pub fn inside(self, path: &str) -> String {
        let path = path.replace("{far}", self.far).replace("{near}", self.near).replace("{n}", "7");
        path.trim_start_matches('/').to_owned()
    }
}

/// Whether a path is there, inside of a root, reached through directories alone.
pub fn is_inside(root: &Path, path: &str) -> bool {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, root, flags | OFlags::DIRECTORY, Mode::empty()).unwrap();
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    rustix::fs::openat2(root, path, flags, Mode::empty(), resolve).is_ok()
}

/// A shell's script that reads whatever it finds in a small image's root, and writes to it and through it.
///
/// Not in `/bin`, where its own program is, nor what the sandbox itself has mounted: those are not the image's.
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
