//! The users of isolate's boxes.
//!
//! Box N has the user `first_uid + N`. Only isolate knows the first user: it stands in its configuration, whose path is
//! compiled in, or in `/etc/subuid`. isolate prints it if it is called with `--verbose` twice. The call asks for a box that
//! no configuration allows, so it does nothing else.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use super::cache_file;

/// Name of the cache file in the run directory.
const CACHE_FILE: &str = "isolate-users";
/// The call that prints the configuration and fails.
const CALL: [&str; 4] = ["--verbose", "--verbose", "--box-id=2147483647", "--cleanup"];
/// Files that usually decide about the users. The users are asked for again if one of them has changed.
const SOURCES: [&str; 4] = ["/usr/local/etc/isolate", "/etc/isolate", "/etc/subuid", "/etc/subgid"];

/// The user and the group of box 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BoxUsers {
    first_uid: u32,
    first_gid: u32,
}

/// Device, inode and change time of a file; `None` if it does not exist.
type SourceIdentity = Option<(u64, u64, i64, i64)>;

/// What isolate has answered, and the files on which the answer depends.
#[derive(Debug, Serialize, Deserialize)]
struct CachedUsers {
    program: SourceIdentity,
    sources: Vec<SourceIdentity>,
    users: Option<BoxUsers>,
}

impl BoxUsers {
    /// Returns the users of the boxes of the isolate at `path`, which is started only if its file or a file of its
    /// configuration has changed since the last call. `None` if this isolate does not print them. The cache is in `run_dir`, which need
    /// not exist. The program runs as `caller`, a user and a group, if that is given.
    #[must_use]
    pub fn cached(path: &Path, run_dir: &Path, caller: Option<(u32, u32)>) -> Option<Self> {
        let file = run_dir.join(CACHE_FILE);
        let program = identity(path);
        let sources: Vec<SourceIdentity> = SOURCES.iter().map(|source| identity(Path::new(source))).collect();
        if let Some(cached) = cache_file::read::<CachedUsers>(&file)
            && (cached.program, &cached.sources) == (program, &sources)
        {
            return cached.users;
        }
        let users = Self::detect(path, caller);
        // If the cache cannot be written, the next call asks again.
        let _ = cache_file::write(&file, &CachedUsers { program, sources, users });
        users
    }

    fn detect(path: &Path, caller: Option<(u32, u32)>) -> Option<Self> {
        let mut command = Command::new(path);
        if let Some((uid, gid)) = caller {
            command.uid(uid).gid(gid);
        }
        let output = command
            .args(CALL)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output()
            .ok()?;
        Self::parse(&output.stdout)
    }

    /// Parses a line such as `Config: first_uids=60000 first_gid=60000 num_boxes=1000`.
    fn parse(output: &[u8]) -> Option<Self> {
        let text = str::from_utf8(output).ok()?;
        let words =
            || text.lines().filter_map(|line| line.strip_prefix("Config: ")).flat_map(|line| line.split(' '));
        let number = |names: [&str; 2]| {
            let value = |word: &str| {
                let (name, value) = word.split_once('=')?;
                names.contains(&name).then(|| value.parse().ok())?
            };
            words().find_map(value)
        };
        let first_uid = number(["first_uids", "first_uid"])?;
        let first_gid = number(["first_gids", "first_gid"])?;
        Some(Self { first_uid, first_gid })
    }

    /// Returns the user and the group of a box.
    #[must_use]
    pub fn of_box(self, id: u32) -> Option<(u32, u32)> {
        Some((self.first_uid.checked_add(id)?, self.first_gid.checked_add(id)?))
    }
}

fn identity(path: &Path) -> SourceIdentity {
    let identity = |file: Metadata| (file.dev(), file.ino(), file.ctime(), file.ctime_nsec());
    fs::metadata(path).ok().map(identity)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn users_are_read_from_what_isolate_prints() {
        let text = "Config: box_root=/b lock_root=/l cg_root=/c\n\
            Config: first_uids=60000 first_gid=70000 num_boxes=1000\nConfig: restricted_init=0\n";
        let users = BoxUsers::parse(text.as_bytes()).unwrap();
        assert_eq!(users.of_box(7), Some((60_007, 70_007)));
        assert_eq!(users.of_box(u32::MAX), None);
        for text in
            ["", "Config: first_uids=1\n", "first_uids=1 first_gid=1\n", "Config: first_uids=x first_gid=1\n"]
        {
            assert_eq!(BoxUsers::parse(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn isolate_is_asked_again_only_if_its_file_has_changed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("isolate");
        let ask = |output: &str| {
            fs::write(
                &path,
                format!("#!/bin/sh\necho >> {}/calls\n{output}\nexit 2\n", dir.path().display()),
            )
            .unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            let answers = [(); 2].map(|()| BoxUsers::cached(&path, dir.path(), None));
            assert_eq!(answers[0], answers[1]);
            (answers[0].and_then(|users| users.of_box(1)), fs::read(dir.path().join("calls")).unwrap().len())
        };
        assert_eq!(ask("echo Config: first_uids=10 first_gid=20"), (Some((11, 21)), 1));
        assert_eq!(ask("echo an older isolate"), (None, 2));
    }
}
