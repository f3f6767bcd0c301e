//! Directory rules: the directories and filesystems that isolate mounts inside the box.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;

use super::{IsolateError, IsolateVersion};

/// Flags of a rule, except those that [`RuleTarget`] represents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[expect(clippy::struct_excessive_bools, reason = "isolate's flags are independent of each other")]
pub struct RuleFlags {
    /// The directory is writable.
    pub rw: bool,
    /// Programs in the directory cannot be executed.
    pub noexec: bool,
    /// The rule is skipped if the directory of the host does not exist.
    pub maybe: bool,
    /// Device nodes in the directory can be used.
    pub dev: bool,
    /// Mounts below the directory are not bound.
    pub norec: bool,
}

/// The object that a rule mounts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RuleTarget {
    /// A directory of the host: an absolute path, or a path that begins with `./` and is relative to isolate's directory for
    /// the box.
    Directory(OsString),
    /// A new instance of a filesystem of this type.
    Filesystem(OsString),
    /// An empty directory that isolate makes for the box.
    Temporary,
    /// Nothing: removes an earlier rule for the same path.
    Nothing,
}

/// A rule of isolate's option `--dir`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirRule {
    /// The path in the box, without leading slashes. isolate compares paths of rules as text.
    pub inside: OsString,
    /// The object that is mounted at the path.
    pub target: RuleTarget,
    /// How the object is mounted.
    pub flags: RuleFlags,
}

impl DirRule {
    /// Returns a rule for a directory of the host.
    #[must_use]
    pub fn directory(inside: impl Into<OsString>, outside: impl Into<OsString>, flags: RuleFlags) -> Self {
        Self { inside: inside.into(), target: RuleTarget::Directory(outside.into()), flags }
    }

    /// Parses the value of `--dir`.
    ///
    /// # Errors
    /// [`IsolateError::Rule`] if isolate would refuse the rule.
    pub fn parse(text: &OsStr) -> Result<Self, IsolateError> {
        let refused = |reason| IsolateError::Rule { rule: text.to_owned(), reason };
        let mut parts = text.as_bytes().split(|byte| *byte == b':');
        let paths = parts.next().unwrap_or_default();
        let (mut flags, mut filesystem, mut temporary) = (RuleFlags::default(), false, false);
        for flag in parts {
            match flag {
                b"rw" => flags.rw = true,
                b"noexec" => flags.noexec = true,
                b"maybe" => flags.maybe = true,
                b"dev" => flags.dev = true,
                b"norec" => flags.norec = true,
                b"fs" => filesystem = true,
                b"tmp" => temporary = true,
                _ => return Err(refused("unknown flag")),
            }
        }
        let mut halves = paths.splitn(2, |byte| *byte == b'=');
        let inside = halves.next().unwrap_or_default();
        let inside = &inside[inside.iter().take_while(|byte| **byte == b'/').count()..];
        let owned = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
        let target = match (filesystem, temporary, halves.next()) {
            (true, true, _) => return Err(refused("the flags `fs` and `tmp` exclude each other")),
            (true, false, None | Some(b"")) => return Err(refused("the name of the filesystem is missing")),
            (true, false, Some(kind)) => RuleTarget::Filesystem(owned(kind)),
            (false, true, Some(_)) => {
                return Err(refused("the flag `tmp` excludes a directory of the host"));
            }
            (false, true, None) => RuleTarget::Temporary,
            (false, false, Some(b"")) => RuleTarget::Nothing,
            (false, false, Some(outside)) => RuleTarget::Directory(owned(outside)),
            (false, false, None) => RuleTarget::Directory(owned(&[b"/", inside].concat())),
        };
        if inside.is_empty() || inside.split(|byte| *byte == b'/').any(|part| part == b"..") {
            return Err(refused("not a path in the box"));
        }
        Ok(Self { inside: owned(inside), target, flags })
    }

    /// Returns the rule as the value of `--dir`.
    ///
    /// # Errors
    /// [`IsolateError::Rule`] if a path contains a separator.
    pub fn to_value(&self) -> Result<OsString, IsolateError> {
        let (outside, kind) = match &self.target {
            RuleTarget::Directory(outside) => (Some(outside.as_os_str()), None),
            RuleTarget::Filesystem(kind) => (Some(kind.as_os_str()), Some("fs")),
            RuleTarget::Temporary => (None, Some("tmp")),
            RuleTarget::Nothing => (Some(OsStr::new("")), None),
        };
        let mut text = self.inside.clone();
        if let Some(outside) = outside {
            text.push("=");
            text.push(outside);
        }
        let has = |text: &OsStr, byte| text.as_bytes().contains(&byte);
        if has(&text, b':') || has(&self.inside, b'=') {
            return Err(IsolateError::Rule { rule: text, reason: "a path contains `:` or `=`" });
        }
        let RuleFlags { rw, noexec, maybe, dev, norec } = self.flags;
        let named = [("rw", rw), ("noexec", noexec), ("maybe", maybe), ("dev", dev), ("norec", norec)];
        for flag in kind.into_iter().chain(named.iter().filter(|(_, set)| *set).map(|(name, _)| *name)) {
            text.push(":");
            text.push(flag);
        }
        Ok(text)
    }
}

impl fmt::Display for DirRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.to_value() {
            Ok(text) => write!(f, "{}", text.display()),
            Err(_) => write!(f, "{}", self.inside.display()),
        }
    }
}

/// Returns the names in the inside path of a rule, without empty names and `.`.
pub fn components(inside: &OsStr) -> impl Iterator<Item = &OsStr> {
    let parts = inside.as_bytes().split(|byte| *byte == b'/');
    parts.filter(|part| !matches!(*part, b"" | b".")).map(OsStr::from_bytes)
}

/// Returns whether a rule is for the root of the box. isolate refuses `/` but accepts `.`, `./` and similar spellings.
#[must_use]
pub fn is_root(inside: &OsStr) -> bool {
    components(inside).next().is_none()
}

/// A directory of the skeleton that is empty in every root.
const EMPTY_DIRECTORY: &str = "sys";

/// Returns the rules that make `root` the root of the box. They must be used with `--no-default-dirs`.
///
/// isolate applies its default rules before all others. A rule with the path of a default rule takes the position of that
/// rule, and so would be applied before the root is mounted. So the paths are spelled `./box` and not `box`.
#[must_use]
pub fn root_rules(version: IsolateVersion, root: &Path, rw: bool) -> Vec<DirRule> {
    let writable = RuleFlags { rw: true, ..RuleFlags::default() };
    let rule = |inside: &str, target, flags| DirRule { inside: inside.into(), target, flags };
    vec![
        DirRule::directory(".", root, RuleFlags { rw, ..RuleFlags::default() }),
        DirRule::directory("./box", "./box", writable),
        DirRule::directory(
            "./dev",
            "/dev",
            RuleFlags { dev: true, norec: version.has_norec(), ..RuleFlags::default() },
        ),
        // Otherwise all boxes would share the host's /dev/shm.
        rule("./dev/shm", RuleTarget::Filesystem("tmpfs".into()), writable),
        // The terminals of the sandbox alone: see `roots::mount_terminals`.
        DirRule::directory(
            "./dev/pts",
            "/dev/pts",
            RuleFlags { rw: true, dev: true, maybe: true, ..RuleFlags::default() },
        ),
        rule("./proc", RuleTarget::Filesystem("proc".into()), RuleFlags::default()),
        // Hides isolate's own process, whose mounts and arguments contain paths of the host. isolate does this with the mount
        // option `hidepid`, but only if the path is spelled `proc`.
        DirRule::directory("./proc/1", root.join(EMPTY_DIRECTORY), RuleFlags::default()),
        rule("./tmp", RuleTarget::Temporary, RuleFlags::default()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<DirRule, IsolateError> {
        DirRule::parse(OsStr::new(text))
    }

    #[test]
    fn rules_are_parsed_as_isolate_does() {
        let cases = [
            ("/etc", "etc=/etc"),
            ("etc/alternatives=/etc/alternatives:maybe", "etc/alternatives=/etc/alternatives:maybe"),
            ("//a/./b=/x:norec:dev:rw", "a/./b=/x:rw:dev:norec"),
            ("tmp:tmp", "tmp:tmp"),
            ("dev/shm=tmpfs:fs:rw", "dev/shm=tmpfs:fs:rw"),
            (".=/images/x", ".=/images/x"),
            ("usr=", "usr="),
            ("a=b=c", "a=b=c"),
            ("a:", ""),
            ("a:x", ""),
            ("proc:fs", ""),
            ("proc=:fs", ""),
            ("a:fs:tmp", ""),
            ("a=/x:tmp", ""),
            ("/=/x", ""),
            ("", ""),
            ("=/x", ""),
            ("a/../b=/x", ""),
            ("..", ""),
        ];
        for (text, expected) in cases {
            match parse(text) {
                Ok(rule) => assert_eq!(rule.to_string(), expected, "{text}"),
                Err(error) => assert_eq!("", expected, "{text}: {error}"),
            }
        }
    }

    #[test]
    fn rule_with_a_separator_in_a_path_is_an_error() {
        let is_valid = |inside: &str, outside: &str| {
            DirRule::directory(inside, outside, RuleFlags::default()).to_value().is_ok()
        };
        assert!(is_valid("a", "/b=c"));
        assert!(!is_valid("a", "/b:c") && !is_valid("a:b", "/c") && !is_valid("a=b", "/c"));
    }

    #[test]
    fn root_is_recognized_in_every_spelling() {
        for (text, root) in
            [(".", true), ("./", true), ("././/.", true), ("./a", false), ("a", false), ("...", false)]
        {
            assert_eq!(is_root(OsStr::new(text)), root, "{text}");
        }
        let parts: Vec<_> = components(OsStr::new("./a//b/.")).collect();
        assert_eq!(parts, ["a", "b"]);
    }

    #[test]
    fn rules_of_a_root_list_outer_directories_first() {
        let text = |rw| {
            let rules = root_rules(IsolateVersion::new(2, 6, 0), Path::new("/run/r"), rw);
            rules.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        };
        let rest = "./box=./box:rw ./dev=/dev:dev:norec ./dev/shm=tmpfs:fs:rw ./dev/pts=/dev/pts:rw:maybe:dev ./proc=proc:fs ./proc/1=/run/r/sys ./tmp:tmp";
        assert_eq!(text(false), format!(".=/run/r {rest}"));
        assert_eq!(text(true), format!(".=/run/r:rw {rest}"));
    }
}
