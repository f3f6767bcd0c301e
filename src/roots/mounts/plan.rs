//! The configuration of a root's filesystems, as text: what is given to the kernel, without giving it.
//!
//! Layers are named by descriptors of this process (`/proc/self/fd/7`). The mount table shows an overlay's options word by
//! word to whoever runs in it, and such a name tells nothing of the host; it needs no escaping either.

use std::os::fd::{AsRawFd as _, BorrowedFd};

use crate::roots::mounts::upper::files_within;

/// One setting of a filesystem that is about to be made (fsconfig(2)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Setting {
    /// A key with a value.
    Value(&'static str, String),
    /// A key alone.
    Flag(&'static str),
}

/// The writable side of an overlay: a directory that holds `upper` and `work`.
pub(crate) type Writable<'fd> = BorrowedFd<'fd>;

/// How lower layers are given to the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LowerForm {
    /// One by one, which Linux 6.8 brought: any number.
    Each,
    /// In one value: no more than fit into 255 bytes.
    Joined,
}

/// An overlay of `lowers`, the topmost first.
pub(crate) fn overlay(
    source: &str,
    lowers: &[BorrowedFd<'_>],
    form: LowerForm,
    writable: Option<Writable<'_>>,
) -> Vec<Setting> {
    let mut settings = vec![Setting::Value("source", source.to_owned())];
    let names = lowers.iter().map(|lower| name_of(*lower));
    match form {
        LowerForm::Each => settings.extend(names.map(|name| Setting::Value("lowerdir+", name))),
        LowerForm::Joined => {
            settings.push(Setting::Value("lowerdir", names.collect::<Vec<_>>().join(":")));
        }
    }
    // What kernels are configured to do by themselves differs. An index and numbers that are unique over all layers
    // serve NFS exports and hardlinks over copy-up; copied metadata alone would make the upper refer to the image.
    settings.extend([("index", "off"), ("xino", "off"), ("metacopy", "off")].map(value));
    if let Some(writable) = writable {
        let name = name_of(writable);
        settings.push(Setting::Value("upperdir", format!("{name}/upper")));
        settings.push(Setting::Value("workdir", format!("{name}/work")));
        // A directory of the image can be renamed, as on any disk.
        settings.push(value(("redirect_dir", "on")));
        // An upper is never used again after a crash: nothing of it needs to reach the disk.
        settings.push(Setting::Flag("volatile"));
    }
    settings
}

/// An overlay that can never be mounted beside another one with the same upper: to find out whether there is one.
pub(crate) fn probe(lower: BorrowedFd<'_>, writable: Writable<'_>) -> Vec<Setting> {
    let name = name_of(writable);
    vec![
        Setting::Value("source", "rcx-probe".to_owned()),
        Setting::Value("lowerdir", name_of(lower)),
        Setting::Value("upperdir", format!("{name}/upper")),
        Setting::Value("workdir", format!("{name}/work")),
        value(("index", "on")),
    ]
}

/// A filesystem in memory of at most `size` bytes, for an upper.
pub(crate) fn tmpfs(source: &str, size: u64) -> Vec<Setting> {
    vec![
        Setting::Value("source", source.to_owned()),
        Setting::Value("size", size.to_string()),
        Setting::Value("nr_inodes", files_within(size).to_string()),
        value(("mode", "0700")),
    ]
}

fn value((key, value): (&'static str, &str)) -> Setting {
    Setting::Value(key, value.to_owned())
}

fn name_of(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd as _;

    use super::*;

    /// Settings as text, descriptors by the letters they stand for.
    fn text(settings: &[Setting], files: &[&File]) -> Vec<String> {
        let plain = |value: &str| {
            files.iter().zip('A'..).fold(value.to_owned(), |value, (file, letter)| {
                // Numbers of more digits first would matter with more than a few descriptors.
                value.replace(&name_of(file.as_fd()), &letter.to_string())
            })
        };
        let line = |setting: &Setting| match setting {
            Setting::Value(key, value) => format!("{key}={}", plain(value)),
            Setting::Flag(key) => (*key).to_owned(),
        };
        settings.iter().map(line).collect()
    }

    #[test]
    fn overlay_names_its_layers_by_descriptors_topmost_first() {
        let open = || File::open("/").unwrap();
        let (skeleton, image, home) = (open(), open(), open());
        let lowers = [skeleton.as_fd(), image.as_fd()];
        let files = [&skeleton, &image, &home];
        let common = ["index=off", "xino=off", "metacopy=off"];
        let shared = overlay("rcx-root-x", &lowers, LowerForm::Each, None);
        assert_eq!(
            text(&shared, &files),
            [&["source=rcx-root-x", "lowerdir+=A", "lowerdir+=B"], &common[..]].concat()
        );
        let writable = overlay("rcx-root-x", &lowers, LowerForm::Joined, Some(home.as_fd()));
        let upper = ["upperdir=C/upper", "workdir=C/work", "redirect_dir=on", "volatile"];
        assert_eq!(
            text(&writable, &files),
            [&["source=rcx-root-x", "lowerdir=A:B"], &common[..], &upper[..]].concat()
        );
    }

    #[test]
    fn tmpfs_is_bounded_in_bytes_and_files() {
        let settings = tmpfs("rcx-root-x", 64 << 20);
        assert_eq!(
            text(&settings, &[]),
            ["source=rcx-root-x", "size=67108864", "nr_inodes=16384", "mode=0700"]
        );
    }
}
