//! The other tools, each of which unpacks an image into a directory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use support::disk;

/// The names of the tools, in the order of the columns.
pub(crate) const NAMES: [&str; 3] = ["umoci", "buildah, overlay", "buildah, vfs"];

/// The time limit for one tool in seconds. One case makes the tools write 9 GiB of zeros.
const TIMEOUT: &str = "300";

/// The result of a tool for an image: the tree, or its error message.
pub(crate) type Outcome = Result<String, String>;

#[derive(Debug)]
pub(crate) struct Tools {
    scratch: PathBuf,
    /// Files with a later modification time were written by the tools.
    since: i64,
}

impl Tools {
    pub(crate) fn new(scratch: &Path) -> Self {
        let policy = r#"{"default":[{"type":"insecureAcceptAnything"}]}"#;
        fs::write(scratch.join("policy.json"), policy).unwrap();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        Self { scratch: scratch.to_owned(), since: i64::try_from(now).unwrap() - 1 }
    }

    /// Runs all tools on an image.
    pub(crate) fn run(&self, layout: &Path, tag: &str) -> [Outcome; 3] {
        let image = format!("{}:{tag}", layout.display());
        [self.umoci(&image), self.buildah("overlay", &image), self.buildah("vfs", &image)]
    }

    fn umoci(&self, image: &str) -> Outcome {
        let bundle = self.scratch.join("bundle");
        let result = self
            .command("umoci", &["unpack", "--image", image, path(&bundle)])
            .and_then(|_| self.read(&bundle.join("rootfs")));
        if bundle.exists() {
            fs::remove_dir_all(&bundle).unwrap();
        }
        result
    }

    fn buildah(&self, driver: &str, image: &str) -> Outcome {
        let (root, run) = (self.scratch.join(driver), self.scratch.join(format!("{driver}-run")));
        let policy = self.scratch.join("policy.json");
        let buildah = |arguments: &[&str]| {
            let global = ["--root", path(&root), "--runroot", path(&run), "--storage-driver", driver];
            self.command("buildah", &[&global, arguments].concat())
        };
        let from = ["from", "--quiet", "--name", "case", "--signature-policy", path(&policy)];
        let result = buildah(&[&from[..], &[&format!("oci:{image}")]].concat())
            .and_then(|_| buildah(&["mount", "case"]))
            .and_then(|mounted| self.read(Path::new(mounted.trim())));
        // The first two commands fail if there is no container.
        let _ = buildah(&["umount", "case"]);
        let _ = buildah(&["rm", "case"]);
        let _ = buildah(&["rmi", "--all", "--force"]);
        result
    }

    fn read(&self, tree: &Path) -> Outcome {
        disk::dump(tree, self.since).map_err(|error| format!("cannot read its tree: {error}"))
    }

    /// Runs a program. An error is the last line that it printed, without parts that differ between runs.
    fn command(&self, program: &str, arguments: &[&str]) -> Outcome {
        let mut command = Command::new("timeout");
        let command = command.env("TMPDIR", &self.scratch);
        let output = command.arg(TIMEOUT).arg(program).args(arguments).output().unwrap();
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        let panic = stderr.lines().find(|line| line.starts_with("panic: "));
        let last = stderr.lines().rev().find(|line| !line.trim().is_empty());
        let message = panic.or(last).map_or_else(|| output.status.to_string(), str::to_owned);
        Err(root_cause(&message.replace(path(&self.scratch), "…")).to_owned())
    }
}

/// Removes the context that the tools put before the cause of an error.
fn root_cause(message: &str) -> &str {
    let mut rest = message.trim();
    for before in ["⨯ ", "Error: ", "unpack layer: ", "unpack rootfs: ", "\": "] {
        rest = rest.rsplit_once(before).map_or(rest, |(_, rest)| rest);
    }
    rest.trim_end_matches("exit status 1").trim_end_matches([' ', ':'])
}

fn path(path: &Path) -> &str {
    path.to_str().expect("the path is ASCII")
}
