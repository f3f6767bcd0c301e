//! POSIX ACLs of an image are enforced in the mount and in roots of every engine, as in a plain directory.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use support::program::Program;
use support::text::{image, layers, load};

/// The user that the ACLs of the image name.
const NAMED: u32 = 4242;
/// A user that no ACL names.
const OTHER: u32 = 4243;

/// An ACL in the format of the kernel (include/uapi/linux/posix_acl_xattr.h), escaped for a layer in text: permissions of the
/// owner, of [`NAMED`], of the group, the mask, and others.
fn acl([owner, named, group, mask, other]: [u16; 5]) -> String {
    let entries =
        [(0x01, owner, u32::MAX), (0x02, named, NAMED), (0x04, group, u32::MAX), (0x10, mask, u32::MAX)];
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries.into_iter().chain([(0x20_u16, other, u32::MAX)]) {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect()
}

/// Loads an image with files and directories whose ACLs differ from their modes.
fn load_image(program: &Program) -> String {
    let access = |acl: String| format!("xattr.system.posix_acl_access={acl}");
    let default = |acl: String| format!("xattr.system.posix_acl_default={acl}");
    let (file_granted, file_denied) = (access(acl([6, 4, 0, 4, 0])), access(acl([6, 0, 4, 4, 4])));
    let (dir_granted, dir_denied) = (access(acl([7, 5, 0, 5, 0])), access(acl([7, 0, 5, 5, 5])));
    let inherited = default(acl([7, 4, 0, 4, 0]));
    let text = format!(
        "f granted text {file_granted}
         f denied text {file_denied}
         f plain text
         d open {dir_granted}
         f open/file text
         d shut {dir_denied}
         f shut/file text
         d heirs mode=0755 {inherited}
         f heirs/old text
         ---
         f upper text {file_granted}"
    );
    load(program, &image("acl", layers(&text)))
}

fn may_read(user: u32, path: &Path) -> bool {
    let mut command = Command::new("setpriv");
    command.arg(format!("--reuid={user}")).arg(format!("--regid={user}")).arg("--clear-groups");
    command.arg("cat").arg(path).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success()
}

/// Whether [`NAMED`] and whether [`OTHER`] may read each file: the rules of acl(5).
const EXPECTED: [(&str, bool, bool); 7] = [
    ("granted", true, false),
    ("upper", true, false),
    ("denied", false, true),
    ("plain", true, true),
    ("open/file", true, false),
    ("shut/file", false, true),
    ("heirs/old", true, true),
];

#[track_caller]
fn assert_enforced(root: &Path, engine: &str) {
    // Twice: the kernel answers the second time from its cache.
    for round in ["first", "second"] {
        for (path, named, other) in EXPECTED {
            let path = root.join(path);
            let may = (may_read(NAMED, &path), may_read(OTHER, &path));
            assert_eq!(may, (named, other), "{engine}: {} in the {round} round", path.display());
        }
    }
}

#[test]
fn acls_of_an_image_are_enforced_in_the_mount_and_in_roots_of_every_engine() {
    let program = Program::new();
    let name = load_image(&program);
    let mount = program.mount();
    assert_enforced(&mount.path(&name), "mount");
    for (engine, upper) in support::engines::WITH_UPPERS {
        let root: PathBuf =
            program.ok(&["root", "create", &name, "--engine", engine, "--upper", upper]).into();
        assert_enforced(&root, engine);
        if upper != "none" {
            // A copy in the upper keeps its ACL, and new files inherit the default ACL of their directory.
            for path in ["granted", "denied"] {
                std::fs::write(root.join(path), "changed").unwrap();
            }
            assert_enforced(&root, engine);
            let new = root.join("heirs/new");
            std::fs::write(&new, "text").unwrap();
            assert_eq!((may_read(NAMED, &new), may_read(OTHER, &new)), (true, false), "{engine}");
            std::fs::set_permissions(&new, Permissions::from_mode(0o600)).unwrap();
            assert!(!may_read(NAMED, &new), "{engine}: the mask must hide the entry");
        }
        program.ok(&["root", "remove", root.file_name().unwrap().to_str().unwrap()]);
    }
    mount.stop();
}

/// The kernel asks for each ACL once, also where there is none.
#[test]
fn cached_walk_by_an_unprivileged_user_sends_no_request() {
    let program = Program::new();
    let name = load_image(&program);
    let mount = program.mount();
    let root = mount.path(&name);
    // The kernel never caches the answer to statfs(2), which `find` calls.
    let requests = || {
        let mut requests = program.json(&["status"])["requests"].clone();
        requests.as_object_mut().unwrap().remove("STATFS");
        requests
    };
    // Skips files that the user cannot open: after a denied access the kernel asks the daemon again.
    let script = "cd $0 && find . -name shut -prune -o -ls && cat granted upper plain open/file heirs/old";
    let walk = || {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=4242", "--regid=4242", "--clear-groups", "sh", "-euc", script]).arg(&root);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stdout).contains("open/file"));
    };
    walk();
    assert!(requests()["GETXATTR"].as_u64().unwrap() > 5, "{}", requests());
    // The kernel may reclaim cached inodes at any moment, so only one round of several must be free of requests.
    let quiet = (0..5).any(|_| {
        let before = requests();
        walk();
        before == requests()
    });
    assert!(quiet, "{}", requests());
    mount.stop();
}
